"""The command ``choose``: the best of several texts."""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from bert_jax.data.text_groups import TextGroups
from bert_jax.errors import UserError
from bert_jax.models.description import Head
from bert_jax.prediction.batches import apply_to_stream
from bert_jax.prediction.command import Command, add_batch_flag
from bert_jax.prediction.outputs import Answer, write_answers
from bert_jax.prediction.sources import Example, Fields, Reader, read_examples, text_column
from bert_jax.pretrained import Pretrained
from bert_jax.tasks.choice import choice_predictions, choice_rows, choice_scores


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: nn.Module, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    return choice_scores(model, params, batch)


def _reader(arguments: argparse.Namespace) -> Reader:
    columns = [name.strip() for name in arguments.choices.split(",")]

    def line(text: str, place: str) -> Fields:
        context, *choices = text.split("\t")
        return {"text": context, "choices": _checked(choices, place)}

    def row(values: Mapping[str, Any], place: str) -> Fields:
        fields: Fields = {}
        for flag in ("text", "question"):
            if column := getattr(arguments, flag):
                fields[flag] = text_column(values, column, place, f"--{flag}")
        if len(columns) == 1 and isinstance(values.get(columns[0]), list):
            choices = values[columns[0]]
        else:
            choices = [text_column(values, name, place, "--choices") for name in columns]
        return fields | {"choices": _checked(choices, place)}

    return Reader(line, row)


def _checked(choices: list[Any], place: str) -> list[str]:
    if len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise UserError(
            f"{place} has no two texts to choose from; a line is CONTEXT, a tab, CHOICE, a tab, "
            "CHOICE and so on, and a table's columns are named with --text and --choices"
        )
    return choices


def _answers(model: Pretrained, arguments: argparse.Namespace) -> Iterator[Answer]:
    longest = model.description.max_length
    model.config.check_pairs()

    def make_rows(block: Sequence[Example]) -> TextGroups:
        fields = [example.fields for example in block]
        return choice_rows(
            [field.get("text", "") for field in fields],
            [field.get("question", "") for field in fields],
            [field["choices"] for field in fields],
            model.tokenizer,
            max_length=longest,
        )

    blocks = apply_to_stream(
        functools.partial(_scores, model.model, model.params),
        read_examples(arguments, _reader(arguments)),
        make_rows,
        max_length=longest,
        batch_size=arguments.batch_size,
        mesh=model.mesh,
    )
    for examples, _, scores in blocks:
        for example, prediction in zip(examples, choice_predictions(scores), strict=True):
            best = prediction["prediction"]
            text = example.fields["choices"][best]
            shown = f"{best}  {prediction['probabilities'][best]:6.1%}  {text}"
            yield Answer(example.fields | prediction, shown)


def _run(model: Pretrained, arguments: argparse.Namespace) -> None:
    write_answers(_answers(model, arguments), arguments.output, as_json=arguments.json)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--question",
        default="",
        metavar="COLUMN",
        help="of a table: what stands before each choice (default: none)",
    )
    parser.add_argument(
        "--choices",
        default="choices",
        metavar="COLUMN,...",
        help="of a table: lists of texts, or a column for each choice (default: choices)",
    )
    add_batch_flag(parser)
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a context and its choices, with tabs between"
    )


CHOOSE = Command(
    "choose", "the best of several texts in a context", (Head.CHOICE,), _add_flags, _run
)
