"""Questions about texts that hold the answers, as SQuAD has them, and the files they are read from.

SQuAD 1.1 is https://arxiv.org/abs/1606.05250, SQuAD 2.0, where some questions have no answer,
https://arxiv.org/abs/1806.03822.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_jax.data.file_lines import json_rows, parse_object, read_text, uncompressed_suffix
from bert_jax.data.tfds_rows import TfdsRows
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
