"""Questions about texts that hold the answers, as SQuAD has them, and their windows of tokens.

SQuAD 1.1 is https://arxiv.org/abs/1606.05250, SQuAD 2.0, where some questions have no answer,
https://arxiv.org/abs/1806.03822. Windows are google-research/bert's (``run_squad.py``), but that
words are not cut at white space first: characters tell which tokens an answer is, and which text
tokens are.

Shapes: Q questions, W windows, T tokens, B rows, L sequence length.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.chunks import offsets_of
from bert_jax.data.framing import FRAME_OF_PAIR, SpecialTokens, frame_pairs
from bert_jax.data.text_files import json_rows, parse_object, read_text, uncompressed_suffix
from bert_jax.data.tfds_rows import TfdsRows
from bert_jax.data.tokenizer import TokenizedTexts, WordPieceTokenizer
from bert_jax.data.windows import Windows, slide
from bert_jax.errors import UserError

# Of the places where a misplaced answer does stand, a message names so many.
_PLACES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a text.

    Attributes:
      id: names the question; no other one has it.
      context: the text.
      question: the question.
      answers: answers that are right, each a piece of the context; none if it has no answer.
      answer_starts: the character of the context at which each answer starts.
      title: of the article that the context is from; empty where the data do not tell.
    """

    id: str
    context: str
    question: str
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int, ...] = ()
    title: str = ""

    @property
    def is_impossible(self) -> bool:
        """Whether the context does not answer the question (SQuAD 2.0)."""
        return not self.answers


def read_questions(path: str | Path, *, can_be_impossible: bool = True) -> list[Question]:
    """Reads a file of questions, compressed (.gz, .xz, .zst) or not.

    A ``.json`` file is SQuAD's own format, version 1.1 or 2.0. A ``.jsonl`` file has one question a
    line, with the keys ``id``, ``context``, ``question`` and ``answers``; the last is
    ``{"text": [...], "answer_start": [...]}`` or a list of ``{"text": ..., "answer_start": ...}``.
    A ``title`` may be missing.

    Args:
      path: the file.
      can_be_impossible: whether a question may have no answer.

    Raises:
      UserError: the file cannot be read, something is missing in it, an id stands twice, or an
        answer does not stand in its context where it is said to.
    """
    path = Path(path)
    if uncompressed_suffix(path) == ".jsonl":
        return _checked(
            (
                (where, _question(row, _text(row, "context", where), _title(row, where), where))
                for where, row in json_rows(path)
            ),
            can_be_impossible,
        )
    squad = parse_object(read_text(path), str(path))
    return _checked(_squad_questions(squad, path), can_be_impossible)


def read_tfds_questions(
    name: str, split: str, *, can_be_impossible: bool = True, data_dir: str | None = None
) -> list[Question]:
    """Reads a TFDS data set with the columns of ``squad`` or ``squad/v2.0``.

    Args:
      name: ``NAME`` or ``NAME/CONFIG``.
      split: the split, in TFDS's notation.
      can_be_impossible: whether a question may have no answer.
      data_dir: where TFDS keeps its data; None is TFDS's own default.

    Raises:
      UserError: it cannot be read, or is not right, as in ``read_questions``.
    """
    rows = TfdsRows(name, split, data_dir)
    answers = ("answers/text", "answers/answer_start")
    titles = ("title",) if "title" in rows else ()
    return _checked(
        (
            (
                f"{name}, {split}",
                Question(
                    id, context, question, tuple(texts), tuple(starts), *itertools.chain(*title)
                ),
            )
            for (id,), (context,), (question,), texts, starts, *title in rows.read(
                "id", "context", "question", *answers, *titles
            )
        ),
        can_be_impossible,
    )


def _squad_questions(squad: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Question]]:
    if not isinstance(squad.get("data"), list):
        raise UserError(
            f"{path} is not in SQuAD's format: it has no list 'data'; questions that stand one a "
            "line need a name ending in .jsonl"
        )
    for a, article in enumerate(squad["data"]):
        where = f"{path}, data[{a}]"
        title = _title(article, where)
        for p, paragraph in enumerate(_items(article, "paragraphs", where)):
            place = f"{where}.paragraphs[{p}]"
            context = _text(paragraph, "context", place)
            for q, row in enumerate(_items(paragraph, "qas", place)):
                yield str(path), _question(row, context, title, f"{place}.qas[{q}]")


def _title(row: Any, where: str) -> str:
    return _text(row, "title", where) if isinstance(row, dict) and "title" in row else ""


def _question(row: Any, context: str, title: str, where: str) -> Question:
    id, question = _text(row, "id", where), _text(row, "question", where)
    where = f"{where} (question {id})"
    answers = _value(row, "answers", where)
    if isinstance(answers, dict):
        texts, starts = (_value(answers, key, where) for key in ("text", "answer_start"))
    elif isinstance(answers, list):
        texts = [_value(answer, "text", where) for answer in answers]
        starts = [_value(answer, "answer_start", where) for answer in answers]
    else:
        texts = starts = None
    if not (
        isinstance(texts, list)
        and isinstance(starts, list)
        and len(texts) == len(starts)
        and all(isinstance(text, str) for text in texts)
        and all(type(start) is int for start in starts)
    ):
        raise UserError(
            f"{where} has answers that are not pairs of a 'text' and a whole number "
            f"'answer_start', but {json.dumps(answers, ensure_ascii=False)[:80]}; correct them"
        )
    return Question(id, context, question, tuple(texts), tuple(starts), title)


def _value(row: Any, key: str, where: str) -> Any:
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__} where an object is needed; correct it")
    if key not in row:
        raise UserError(f"{where} has no key {key!r}; its keys are {', '.join(row)}")
    return row[key]


def _text(row: Any, key: str, where: str) -> str:
    value = _value(row, key, where)
    if not isinstance(value, str):
        raise UserError(f"{where} has a {key!r} that is no text: {value!r}; correct it")
    return value


def _items(row: Any, key: str, where: str) -> list[Any]:
    value = _value(row, key, where)
    if not isinstance(value, list):
        raise UserError(f"{where} has a {key!r} that is no list; correct it")
    return value


def _checked(questions: Iterator[tuple[str, Question]], can_be_impossible: bool) -> list[Question]:
    """The questions, without the places that name them in messages."""
    checked: dict[str, Question] = {}
    for where, question in questions:
        if question.id in checked:
            raise UserError(f"{where} has two questions of the id {question.id!r}; rename one")
        if question.is_impossible and not can_be_impossible:
            raise UserError(
                f"{where}: question {question.id} has no answer; give it one, or allow questions "
                "without, as SQuAD 2.0 has them"
            )
        for answer, start in zip(question.answers, question.answer_starts, strict=True):
            if not answer.strip():
                raise UserError(
                    f"{where}: question {question.id} has an empty answer; a question without an "
                    "answer has an empty list of them"
                )
            if start < 0 or not question.context.startswith(answer, start):
                raise UserError(
                    f"{where}: the answer {answer!r} of question {question.id} is not at character "
                    f"{start} of its context; {_advice(question.context, answer)}"
                )
        checked[question.id] = question
    return list(checked.values())


def _advice(context: str, answer: str) -> str:
    """What to do about an answer that is not where it is said to be."""
    places: list[int] = []
    at = context.find(answer)
    while at >= 0 and len(places) <= _PLACES_SHOWN:
        places.append(at)
        at = context.find(answer, at + 1)
    if not places:
        return "nor is it anywhere else there, so correct the answer"
    if len(places) == 1:
        return f"it is at {places[0]} only, so set answer_start to that"
    shown = ", ".join(map(str, places[:_PLACES_SHOWN]))
    more = ", ..." if len(places) > _PLACES_SHOWN else ""
    return f"it is at {shown}{more}, so set answer_start to the right one"


@dataclass(frozen=True)
class QuestionWindows:
    """Questions as rows ``[CLS] question [SEP] window of the context [SEP]``.

    Made by ``make_windows``. Positions of tokens are those in ``tokens``.

    Attributes:
      windows: the windows; their sequences are the questions.
      tokens: int32 [T], the contexts' tokens and then the questions'.
      character_starts, character_ends: int32 [contexts' tokens]; a token stands for the characters
        ``context[start:end]``.
      question_starts, question_lengths: int64 [Q], the questions' tokens.
      context_starts: int64 [Q], the first token of each question's context.
      answer_starts, answer_ends: int32 [W], the row's columns at which the first answer starts and
        (inclusive) ends; 0, the column of [CLS], where it is not wholly in the window.
      special: ids of the framing tokens.
    """

    windows: Windows
    tokens: np.ndarray
    character_starts: np.ndarray
    character_ends: np.ndarray
    question_starts: np.ndarray
    question_lengths: np.ndarray
    context_starts: np.ndarray
    answer_starts: np.ndarray
    answer_ends: np.ndarray
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.windows.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window's row, special ones included: int32 [W]."""
        return (self.context_columns + self.windows.lengths + 1).astype(np.int32)

    @property
    def context_columns(self) -> np.ndarray:
        """The column of each row at which the context's window starts: int64 [W]."""
        return self.question_lengths[self.windows.sequences] + FRAME_OF_PAIR - 1

    @property
    def window_starts(self) -> np.ndarray:
        """The position of each window's first token: int64 [W]."""
        return self.context_starts[self.windows.sequences] + self.windows.starts

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """Model inputs and labels.

        Args:
          numbers: int [B], windows.
          max_length: L, no less than the longest of these rows.

        Returns:
          int32 ``token_ids``, ``segment_ids`` [B, L], ``lengths``, ``start_positions`` and
          ``end_positions`` [B].
        """
        questions = self.windows.sequences[numbers]
        framed = frame_pairs(
            self.tokens,
            self.question_starts[questions],
            self.question_lengths[questions],
            self.window_starts[numbers],
            self.windows.lengths[numbers],
            max_length,
            self.special,
        )
        return {
            "token_ids": framed.token_ids_BL,
            "segment_ids": framed.segment_ids_BL,
            "lengths": framed.lengths_B,
            "start_positions": self.answer_starts[numbers],
            "end_positions": self.answer_ends[numbers],
        }


def make_windows(
    questions: Sequence[Question],
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
    stride: int = 128,
    max_question_length: int = 64,
) -> QuestionWindows:
    """Tokenises questions and cuts their contexts into windows.

    Args:
      questions: the questions; a context that many share is tokenised once.
      tokenizer: the vocabulary.
      max_length: the most tokens of a row, special ones included.
      stride: context tokens from the start of a window to that of the next.
      max_question_length: questions are cut after so many tokens.

    Raises:
      UserError: the lengths leave no room for the context, or an answer has no tokens.
    """
    if stride < 1 or max_question_length < 0 or max_length <= max_question_length + FRAME_OF_PAIR:
        raise UserError(
            f"max_length={max_length} with max_question_length={max_question_length} and "
            f"stride={stride} leaves no window of the context; give a max_length of at least "
            f"{max_question_length + FRAME_OF_PAIR + 1} and a stride of at least 1"
        )
    contexts: dict[str, int] = {}
    context_of = np.array(
        [contexts.setdefault(question.context, len(contexts)) for question in questions], np.int64
    )
    asked = tokenizer.encode_with_characters([question.question for question in questions])
    told = tokenizer.encode_with_characters(list(contexts))
    question_lengths = np.minimum(np.diff(asked.offsets), max_question_length)
    room = max_length - FRAME_OF_PAIR - question_lengths
    context_lengths = np.diff(told.offsets)[context_of]
    windows = slide(context_lengths, room, np.full(len(questions), stride))

    first, last = _answer_tokens(questions, context_of, list(contexts), told)
    first, last = first[windows.sequences], last[windows.sequences]
    inside = (first >= windows.starts) & (last < windows.starts + windows.lengths)
    column = question_lengths[windows.sequences] + FRAME_OF_PAIR - 1 - windows.starts
    return QuestionWindows(
        windows=windows,
        tokens=np.concatenate([told.token_ids, asked.token_ids]),
        character_starts=told.character_starts,
        character_ends=told.character_ends,
        question_starts=asked.offsets[:-1] + len(told.token_ids),
        question_lengths=question_lengths,
        context_starts=told.offsets[:-1][context_of],
        answer_starts=np.where(inside, first + column, 0).astype(np.int32),
        answer_ends=np.where(inside, last + column, 0).astype(np.int32),
        special=SpecialTokens(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id),
    )


def _answer_tokens(
    questions: Sequence[Question],
    context_of: np.ndarray,
    contexts: Sequence[str],
    texts: TokenizedTexts,
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last token of each question's first answer: int64 [Q], in its context.

    They are the tokens of which the answer has a character. Of a question without an answer both
    are -1, which is in no window.
    """
    first = np.full(len(questions), -1)
    last = np.full(len(questions), -1)
    answerable = [question for question in questions if not question.is_impossible]
    answered = np.flatnonzero([not question.is_impossible for question in questions])
    context = context_of[answered]
    starts = np.array([question.answer_starts[0] for question in answerable], np.int64)
    ends = starts + np.array([len(question.answers[0]) for question in answerable], np.int64)
    # Characters are counted over all contexts, where they rise, so that one search serves all.
    before = offsets_of(np.array([len(text) for text in contexts], np.int64))
    before_token = np.repeat(before[:-1], np.diff(texts.offsets))
    first[answered] = np.searchsorted(
        texts.character_ends + before_token, starts + before[context], side="right"
    )
    last[answered] = np.searchsorted(
        texts.character_starts + before_token, ends + before[context], side="left"
    )
    first[answered] -= texts.offsets[context]
    last[answered] -= texts.offsets[context] + 1
    lost = np.flatnonzero(first > last)
    if lost.size:
        question = questions[lost[0]]
        raise UserError(
            f"the answer {question.answers[0]!r} of question {question.id} has no character that "
            "the tokenizer keeps; correct or remove it"
        )
    return first, last
