"""Sentences with a tag for each word, and the files they are read from."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_jax.data.file_lines import json_rows, read_text, uncompressed_suffix
from bert_jax.data.tfds_rows import TfdsRows
from bert_jax.errors import UserError

OUTSIDE = "O"
# IOB1, IOB2, IOE and IOBES: every scheme that conlleval.pl can score.
_ENTITY_TAG = re.compile(r"O|[BIES](-.+)?", re.DOTALL)
# The blocks of ideographs that are in use; BERT makes each ideograph a word.
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+")
_DOCUMENT_MARK = "-DOCSTART-"


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
    """The sentences with their tags by name; one without words keeps its place among the others."""
    checked = []
    for where, words, tags in sentences:
        if len(words) != len(tags):
            raise UserError(
                f"{where} has {len(words)} words and {len(tags)} tags; give each word one tag"
            )
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


def is_entity_tag(tag: str) -> bool:
    """Whether a tag is ``O``, or one of an entity."""
    return _ENTITY_TAG.fullmatch(tag) is not None


def _check_tag(tag: Any, where: str) -> None:
    if not isinstance(tag, str) or not is_entity_tag(tag):
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
