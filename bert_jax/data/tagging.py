"""Sentences with a tag for each word, and their windows of tokens.

A word's tag is learnt and predicted at the word's first token, as in BERT's paper
(https://arxiv.org/abs/1810.04805, section 5.3). A sentence too long for a row is cut into windows
that overlap by half, and each word counts in the one window that has most context around it, so
nothing is cut off or counted twice.

Shapes: N sentences, W windows, S words that count in them, T tokens, B rows, L sequence length.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.chunks import offsets_of, positions_of_runs
from bert_jax.data.framing import FRAME_OF_SINGLE, SpecialTokens, frame_singles
from bert_jax.data.text_files import json_rows, read_text, uncompressed_suffix
from bert_jax.data.tfds_rows import TfdsRows
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.data.windows import Windows, has_most_context, slide, slots
from bert_jax.errors import UserError

OUTSIDE = "O"
# IOB1, IOB2, IOE and IOBES: every scheme that conlleval.pl can score.
_ENTITY_TAG = re.compile(r"O|[BIES](-.+)?", re.DOTALL)
# The blocks of ideographs that are in use; BERT makes each ideograph a word.
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+")
_DOCUMENT_MARK = "-DOCSTART-"
# The label of a tag that is not to be learnt.
_NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words, at least one, and for each an entity tag: ``O``, or ``B-LOC`` with B, I, E or S."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_json_sentences(
    path: str | Path,
    *,
    tokens: str = "tokens",
    tags: str = "ner_tags",
    names: Sequence[str] = (),
) -> list[Sentence]:
    """Reads JSON lines with a list of words and a list of tags, compressed (.gz, .xz, .zst) or not.

    Args:
      path: the file.
      tokens: the key of the words.
      tags: the key of the tags: texts, or numbers of ``names``.
      names: the tags' names, where they are given as numbers.

    Raises:
      UserError: the file cannot be read, a key is missing, words and tags are not equally many, or
        a tag is none.
    """

    def sentences() -> Iterator[tuple[str, Any, Any]]:
        for where, row in json_rows(Path(path)):
            for key in (tokens, tags):
                if not isinstance(row.get(key), list):
                    raise UserError(f"{where} has no list {key!r}; its keys are {', '.join(row)}")
            if not all(isinstance(word, str) for word in row[tokens]):
                raise UserError(f"{where} has words in {tokens!r} that are no texts; correct them")
            yield where, row[tokens], row[tags]

    return _checked(sentences(), names)


def read_conll_sentences(
    path: str | Path, *, token_column: int = 0, tag_column: int = -1
) -> list[Sentence]:
    """Reads lines of columns as CoNLL has them: a word a line, blank lines between sentences.

    Columns are separated by a tab where the line has one, by spaces where it has none. Lines with
    ``-DOCSTART-`` are passed over.

    Args:
      path: the file; may be compressed (.gz, .xz, .zst).
      token_column: the column of the words, from 0, or from the end if negative.
      tag_column: the column of the tags.

    Raises:
      UserError: the file cannot be read, lines differ in their columns, or a tag is none.
    """

    def sentences() -> Iterator[tuple[str, list[str], list[str]]]:
        words: list[str] = []
        tags: list[str] = []
        first_line, columns = 1, 0
        # Only "\n" ends a line, and only spaces and tabs separate: words hold other white space.
        for number, line in enumerate(read_text(Path(path)).split("\n"), start=1):
            line = line.removesuffix("\r")
            if not line.strip(" \t") or line.startswith(_DOCUMENT_MARK):
                if words:
                    yield f"{path}, line {first_line}", words, tags
                words, tags = [], []
                continue
            if not words:
                first_line = number
            fields = line.split("\t") if "\t" in line else line.split(" ")
            fields = [field for field in fields if field]
            columns = columns or len(fields)
            if len(fields) != columns:
                raise UserError(
                    f"{path}, line {number} has {len(fields)} columns, and the lines before have "
                    f"{columns}; correct it"
                )
            for name, column in (("token_column", token_column), ("tag_column", tag_column)):
                if not -columns <= column < columns:
                    raise UserError(
                        f"{path}, line {number} has {columns} columns, so {name}={column} is none; "
                        f"give one from 0 to {columns - 1}"
                    )
            words.append(fields[token_column])
            tags.append(fields[tag_column])
            _check_tag(tags[-1], f"{path}, line {number}")
        if words:
            yield f"{path}, line {first_line}", words, tags

    return _checked(sentences(), ())


def read_tfds_sentences(
    name: str,
    split: str,
    *,
    tokens: str = "tokens",
    tags: str = "ner",
    names: Sequence[str] = (),
    data_dir: str | None = None,
) -> list[Sentence]:
    """Reads a TFDS data set with the columns of ``conll2003``.

    Args:
      name: ``NAME`` or ``NAME/CONFIG``.
      split: the split, in TFDS's notation.
      tokens: the column of the words.
      tags: the column of the tags.
      names: the tags' names, where they are numbers that TFDS has no names for.
      data_dir: where TFDS keeps its data; None is TFDS's own default.

    Raises:
      UserError: it cannot be read, or is not right, as in ``read_json_sentences``.
    """
    rows = TfdsRows(name, split, data_dir)
    return _checked(
        ((f"{name}, {split}", words, given) for words, given in rows.read(tokens, tags)),
        rows.class_names(tags) or names,
    )


def read_sentences(
    path: str | Path,
    *,
    tokens: str | int | None = None,
    tags: str | int | None = None,
    names: Sequence[str] = (),
) -> list[Sentence]:
    """Reads JSON lines (``.jsonl``, ``.json``) or, of any other name, CoNLL's columns.

    Args:
      path: the file.
      tokens, tags: the keys or the columns of words and tags; None takes the reader's default.
      names: the tags' names, where JSON gives them as numbers.

    Raises:
      UserError: as those two readers, or the columns are not of the right kind.
    """
    given = {"tokens": tokens, "tags": tags}
    is_json = uncompressed_suffix(Path(path)) in (".jsonl", ".json")
    for key, value in given.items():
        if value is not None and isinstance(value, int) == is_json:
            raise UserError(
                f"{key}={value!r} names no column of {path}, which is read as "
                f"{'JSON lines; give a key' if is_json else 'columns; give a number'}"
            )
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if is_json:
        return read_json_sentences(path, names=names, **options)
    return read_conll_sentences(
        path, **{f"{key.removesuffix('s')}_column": value for key, value in options.items()}
    )


def _checked(
    sentences: Iterable[tuple[str, Sequence[str], Sequence[str | int]]], names: Sequence[str]
) -> list[Sentence]:
    """The sentences that have words, with their tags by name."""
    checked = []
    for where, words, tags in sentences:
        if len(words) != len(tags):
            raise UserError(
                f"{where} has {len(words)} words and {len(tags)} tags; give each word one tag"
            )
        if words:
            named = tuple(_tag_name(tag, names, where) for tag in tags)
            checked.append(Sentence(tuple(words), named))
    return checked


def _tag_name(tag: Any, names: Sequence[str], where: str) -> str:
    if type(tag) is int:
        if not 0 <= tag < len(names):
            known = f"{len(names)} names are known" if names else "no names are given for tags"
            raise UserError(
                f"{where} has the tag {tag}, but {known}; give the tags' names in order"
            )
        tag = names[tag]
    _check_tag(tag, where)
    return tag


def _check_tag(tag: Any, where: str) -> None:
    if not isinstance(tag, str) or not _ENTITY_TAG.fullmatch(tag):
        raise UserError(
            f"{where} has {tag!r}, which is no entity tag (O, or B-, I-, E- or S- before "
            "the entity's type); choose the column of the tags, or correct it"
        )


def label_names(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    """The tags that occur, in the order of their labels: ``O`` first, then type by type."""
    tags = {tag for sentence in sentences for tag in sentence.tags} - {OUTSIDE}
    return (OUTSIDE, *sorted(tags, key=lambda tag: (tag[2:], tag)))


def split_words(text: str) -> list[tuple[int, int]]:
    """The words of a raw text, as tagged data sets have them: what ``text[start:end]`` are.

    White space separates; each punctuation mark around a word is a word of its own, and so is each
    ideograph. Marks inside a word ("U.S", "al-Qaeda") stay there.
    """
    spans = []
    for run in _RUN.finditer(text):
        start, end = run.span()
        while end > start and _is_mark(text[end - 1]):
            end -= 1
        first = start
        while first < end and _is_mark(text[first]):
            first += 1
        spans += [(at, at + 1) for at in range(start, first)]
        spans += [(first, end)] * (first < end)
        spans += [(at, at + 1) for at in range(end, run.end())]
    return spans


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


@dataclass(frozen=True)
class TagWindows:
    """Sentences as rows ``[CLS] window of the sentence [SEP]``.

    Made by ``make_tag_windows``.

    Attributes:
      windows: the windows; their sequences are the sentences.
      tokens: int32 [T], the tokens of all sentences.
      sentence_starts: int64 [N], each sentence's first token.
      word_counts: int64 [N], the words of each sentence.
      word_offsets: int64 [W+1]; of the next three, window w has ``[word_offsets[w]:
        word_offsets[w + 1]]``.
      words: int64 [S], which word counts here, numbered over all sentences.
      columns: int32 [S], the row's column of the word's first token.
      labels: int32 [S], the word's label, -1 where it is not to be learnt.
      special: ids of the framing tokens.
    """

    windows: Windows
    tokens: np.ndarray
    sentence_starts: np.ndarray
    word_counts: np.ndarray
    word_offsets: np.ndarray
    words: np.ndarray
    columns: np.ndarray
    labels: np.ndarray
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.windows.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window's row, special ones included: int32 [W]."""
        return (self.windows.lengths + FRAME_OF_SINGLE).astype(np.int32)

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """Model inputs and labels.

        Args:
          numbers: int [B], windows.
          max_length: L, no less than the longest of these rows.

        Returns:
          int32 ``token_ids``, ``segment_ids`` [B, L], ``lengths`` [B], ``labels`` [B, L], and
          float32 ``label_weights`` [B, L]: 1 at the first token of each word that counts, else 0.
        """
        sequences = self.windows.sequences[numbers]
        framed = frame_singles(
            self.tokens,
            self.sentence_starts[sequences] + self.windows.starts[numbers],
            self.windows.lengths[numbers],
            max_length,
            self.special,
        )
        counts = np.diff(self.word_offsets)[numbers]
        words = positions_of_runs(self.word_offsets[numbers], counts)
        row = np.repeat(np.arange(len(numbers)), counts)
        labels_BL = np.zeros_like(framed.token_ids_BL)
        weights_BL = np.zeros(labels_BL.shape, np.float32)
        known = self.labels[words] != _NO_LABEL
        place = row[known], self.columns[words[known]]
        labels_BL[place] = self.labels[words[known]]
        weights_BL[place] = 1
        return {
            "token_ids": framed.token_ids_BL,
            "segment_ids": framed.segment_ids_BL,
            "lengths": framed.lengths_B,
            "labels": labels_BL,
            "label_weights": weights_BL,
        }

    def tags(self, predicted: Sequence[np.ndarray], names: Sequence[str]) -> list[list[str]]:
        """The tags of every sentence's words.

        Args:
          predicted: for each of the W windows the labels predicted at its row's columns: at least
            as many as the row has tokens, so an array [W, L] or rows of several lengths.
          names: the labels' names; a word that has no tokens is ``O``.
        """
        tags = [OUTSIDE] * int(self.word_counts.sum())
        for window, labels in enumerate(predicted):
            mine = slice(self.word_offsets[window], self.word_offsets[window + 1])
            chosen = np.asarray(labels)[self.columns[mine]]
            for word, label in zip(self.words[mine].tolist(), chosen.tolist(), strict=True):
                tags[word] = names[label]
        offsets = offsets_of(self.word_counts).tolist()
        return [tags[start:end] for start, end in zip(offsets, offsets[1:], strict=False)]


def make_tag_windows(
    sentences: Sequence[Sentence],
    names: Sequence[str],
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
) -> TagWindows:
    """Tokenises sentences word by word and cuts those that are too long into windows.

    Args:
      sentences: the sentences.
      names: the labels' names; a tag that is none of them is not learnt.
      tokenizer: the vocabulary.
      max_length: the most tokens of a row, special ones included.

    Raises:
      UserError: ``max_length`` leaves no room for a sentence.
    """
    if max_length <= FRAME_OF_SINGLE:
        raise UserError(
            f"max_length={max_length} leaves no room for a sentence; give at least "
            f"{FRAME_OF_SINGLE + 1}"
        )
    tokens, pieces = tokenizer.encode_words(
        word for sentence in sentences for word in sentence.words
    )
    word_counts = np.array([len(sentence.words) for sentence in sentences], np.int64)
    first_tokens = offsets_of(pieces)
    sentence_offsets = first_tokens[offsets_of(word_counts)]
    room = max_length - FRAME_OF_SINGLE
    windows = slide(
        np.diff(sentence_offsets),
        np.full(len(sentences), room),
        np.full(len(sentences), max(room // 2, 1)),
    )
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array(
        [label_of.get(tag, _NO_LABEL) for sentence in sentences for tag in sentence.tags], np.int32
    )
    word_at = np.full(len(tokens), -1)  # the word that a token is the first of
    with_tokens = np.flatnonzero(pieces)
    word_at[first_tokens[with_tokens]] = with_tokens

    window, place = slots(windows)
    token = (sentence_offsets[:-1][windows.sequences] + windows.starts)[window] + place
    counts = has_most_context(windows) & (word_at[token] >= 0)
    words = word_at[token[counts]]
    per_window = np.bincount(window[counts], minlength=len(windows.starts))
    return TagWindows(
        windows=windows,
        tokens=tokens,
        sentence_starts=sentence_offsets[:-1],
        word_counts=word_counts,
        word_offsets=offsets_of(per_window),
        words=words,
        columns=(place[counts] + 1).astype(np.int32),
        labels=labels[words],
        special=SpecialTokens(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id),
    )
