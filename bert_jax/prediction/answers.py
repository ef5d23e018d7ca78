"""The command ``answer``: the pieces of texts that answer questions about them.

Shapes: B batch, L length, 2 a span's start and end.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bert_jax.data.file_lines import is_unicode
from bert_jax.data.question_windows import QuestionWindows, make_windows
from bert_jax.data.questions import Question
from bert_jax.errors import UserError
from bert_jax.models.description import Head
from bert_jax.prediction.batches import apply_to_stream
from bert_jax.prediction.command import Command, add_batch_flag
from bert_jax.prediction.outputs import Answer, write_answers
from bert_jax.prediction.sources import Fields, Reader, read_examples, text_column
from bert_jax.pretrained import Pretrained
from bert_jax.tasks.answers import AnswerOptions, Prediction, answer_questions
from bert_jax.tasks.fine_tuning import apply_model
from bert_jax.tasks.question_answering import answer_to_json

# A context has as many rows as it is long, so that blocks are smaller than those of texts.
_QUESTIONS_PER_BLOCK = 512


@functools.partial(jax.jit, static_argnums=(0, 2))
def _scores(
    model: nn.Module, params: Any, longest: int, batch: Mapping[str, jax.Array]
) -> jax.Array:
    """The scores of every column, filled up to one length."""
    scores_BL2 = apply_model(model, params, batch)
    return jnp.pad(scores_BL2, ((0, 0), (0, longest - scores_BL2.shape[1]), (0, 0)))


def answer_options(model: Pretrained) -> AnswerOptions:
    """How a model's answers are chosen, as its description says; by default as in SQuAD 1.1."""
    names = {field.name for field in dataclasses.fields(AnswerOptions)}
    options = model.description.options
    return AnswerOptions(**{name: options[name] for name in names & options.keys()})


def answer_stream(
    model: Pretrained,
    questions: Iterable[Question],
    options: AnswerOptions | None = None,
    *,
    batch_size: int = 32,
) -> Iterator[tuple[Question, Prediction]]:
    """Answers any number of questions, in memory that does not grow with them.

    Contexts too long for the model are read in windows that overlap.

    Args:
      model: for ``Head.QUESTION_ANSWERING``.
      questions: their ids and answers are not looked at.
      options: how to choose; None takes ``answer_options``.
      batch_size: windows at once.

    Yields:
      Each question with its prediction, in their order.

    Raises:
      UserError: ``batch_size`` is below 1, or the model is too short for questions and context.
    """
    longest = model.description.max_length
    model.config.check_pairs()
    windows_like = {
        name: model.description.options[name]
        for name in ("stride", "max_question_length")
        if name in model.description.options
    }

    def make_rows(block: Sequence[Question]) -> QuestionWindows:
        asked = [dataclasses.replace(q, answers=(), answer_starts=()) for q in block]
        return make_windows(asked, model.tokenizer, max_length=longest, **windows_like)

    blocks = apply_to_stream(
        functools.partial(_scores, model.model, model.params, longest),
        questions,
        make_rows,
        max_length=longest,
        batch_size=batch_size,
        mesh=model.mesh,
        block_size=_QUESTIONS_PER_BLOCK,
    )
    chosen = answer_options(model) if options is None else options
    for block, windows, scores in blocks:
        answers = answer_questions(
            block, windows, list(scores[..., 0]), list(scores[..., 1]), chosen
        )
        yield from zip(block, answers, strict=True)


def _reader(arguments: argparse.Namespace) -> Reader:
    def line(text: str, place: str) -> Fields:
        question, tab, context = text.partition("\t")
        if bool(tab) == (arguments.context is not None):
            raise UserError(
                f"{place} is not QUESTION, a tab, CONTEXT; or, with --context, a question alone"
            )
        return {"question": question, "context": context if tab else arguments.context}

    def row(values: Mapping[str, Any], place: str) -> Fields:
        fields: Fields = {"id": str(values["id"])} if values.get("id") is not None else {}
        fields["question"] = text_column(values, arguments.question, place, "--question")
        fields["context"] = (
            text_column(values, arguments.text, place, "--text")
            if arguments.context is None
            else arguments.context
        )
        return fields

    return Reader(line, row)


def _run(model: Pretrained, arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} must be at least 1")
    if arguments.context is not None and not is_unicode(arguments.context):
        raise UserError("--context is not UTF-8; write each question and its context in a file")
    options = answer_options(model)
    if arguments.no_answer_threshold is not None:
        if math.isnan(arguments.no_answer_threshold):
            raise UserError("--no_answer_threshold nan is no score; give a number")
        options = dataclasses.replace(
            options, can_be_impossible=True, no_answer_threshold=arguments.no_answer_threshold
        )
    questions = (
        Question(fields.get("id", ""), fields["context"], fields["question"])
        for _, fields in read_examples(arguments, _reader(arguments))
    )
    answers = answer_stream(model, questions, options, batch_size=arguments.batch_size)
    write_answers(
        (_shown(question, prediction, arguments.top) for question, prediction in answers),
        arguments.output,
        as_json=arguments.json,
    )


def _shown(question: Question, prediction: Prediction, top: int) -> Answer:
    # What is answered stands first, though the threshold may have passed over better candidates.
    candidates = sorted(prediction.candidates, key=lambda found: found.text != prediction.text)
    kept = prediction._replace(candidates=tuple(candidates[:top]))
    named = {"id": question.id} if question.id else {}
    record = {**named, "question": question.question, **answer_to_json(kept)}
    lines = [f"  {c.probability:6.1%}  {c.text or '(no answer)'}" for c in kept.candidates]
    return Answer(record, "\n".join([question.question, *lines]))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(text="context")
    parser.add_argument(
        "--question",
        default="question",
        metavar="COLUMN",
        help="of a table (default: question); a column id, if there is one, is repeated",
    )
    parser.add_argument(
        "--context", metavar="TEXT", help="what all questions are about (default: each has its own)"
    )
    parser.add_argument(
        "--no_answer_threshold",
        type=float,
        metavar="SCORE",
        help="say that there is no answer where that beats the best one by more (default: as the "
        "model was trained)",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="K",
        help="candidates (default 5; no more than the model's answers.candidates, 20 by default)",
    )
    add_batch_flag(parser)
    parser.add_argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="a question; without --context followed by a tab and its context",
    )


ANSWER = Command(
    "answer",
    "the piece of a text that answers a question",
    (Head.QUESTION_ANSWERING,),
    _add_flags,
    _run,
)
