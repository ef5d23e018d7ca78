"""The commands ``classify`` and ``regress``: classes, labels or a number of texts and pairs."""

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import linen as nn

from bert_jax.data.text_rows import TextRows, make_text_rows
from bert_jax.errors import UserError
from bert_jax.models.description import Head
from bert_jax.prediction.batches import apply_to_stream
from bert_jax.prediction.command import Command, add_batch_flag
from bert_jax.prediction.outputs import Answer, write_answers
from bert_jax.prediction.sources import (
    Example,
    first_and_second,
    lines_of_pairs,
    read_examples,
)
from bert_jax.pretrained import Pretrained
from bert_jax.tasks.fine_tuning import apply_model
from bert_jax.tasks.sequence_classification import (
    THRESHOLD,
    class_predictions,
    label_predictions,
    value_predictions,
)

Prediction: TypeAlias = Mapping[str, Any]


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: nn.Module, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    scores: jax.Array = apply_model(model, params, batch)
    return scores


def _answers(
    model: Pretrained,
    arguments: argparse.Namespace,
    predict: Callable[[np.ndarray], list[dict[str, Any]]],
    show: Callable[[Prediction], str],
) -> Iterator[Answer]:
    longest = model.description.max_length

    learnt = _learnt_pairs(model)

    def make_rows(block: Sequence[Example]) -> TextRows:
        first, second = first_and_second(block)
        if learnt not in (None, second is not None):
            raise UserError(
                f"the model was trained on pairs, and {block[0].place} is a single text; give "
                "--second_text COLUMN, or a tab between the two"
                if learnt
                else f"the model was trained on single texts, and {block[0].place} is a pair; "
                "leave the second text out"
            )
        if second is not None:
            model.config.check_pairs()
        return make_text_rows(first, second, model.tokenizer, max_length=longest)

    blocks = apply_to_stream(
        functools.partial(_scores, model.model, model.params),
        read_examples(arguments, lines_of_pairs(arguments)),
        make_rows,
        max_length=longest,
        batch_size=arguments.batch_size,
        mesh=model.mesh,
        packs=True,
    )
    for examples, _, scores in blocks:
        for example, prediction in zip(examples, predict(scores), strict=True):
            texts = " | ".join(example.fields.values())
            yield Answer(example.fields | prediction, f"{show(prediction)}  {texts}")


def _learnt_pairs(model: Pretrained) -> bool | None:
    """Whether a model was trained on pairs; None of one from elsewhere, which does not tell."""
    if model.description.pairs is not None or model.record is None:
        return model.description.pairs
    data = model.record.config.get("data", {})  # a run of an older version
    return bool(data["second_text"]) if "second_text" in data else None


def _classify(model: Pretrained, arguments: argparse.Namespace) -> None:
    labels = model.description.labels
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold {arguments.threshold} is no probability; give 0 to 1")
    if model.description.head is Head.MULTI_LABEL:
        answers = _answers(
            model,
            arguments,
            lambda scores: label_predictions(scores, labels, arguments.threshold),
            lambda found: ", ".join(found["prediction"]) or "-",
        )
    else:
        width = max(map(len, labels))
        answers = _answers(
            model,
            arguments,
            lambda scores: class_predictions(scores, labels),
            lambda found: (
                f"{found['prediction']:{width}}  {found['probabilities'][found['prediction']]:6.1%}"
            ),
        )
    write_answers(answers, arguments.output, as_json=arguments.json)


def _regress(model: Pretrained, arguments: argparse.Namespace) -> None:
    answers = _answers(
        model, arguments, value_predictions, lambda found: f"{found['prediction']:10.4f}"
    )
    write_answers(answers, arguments.output, as_json=arguments.json)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--second_text", default="", metavar="COLUMN", help="of a table of pairs (default: none)"
    )
    add_batch_flag(parser)
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text, or a pair with a tab between"
    )


def _add_classify_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="P",
        help="of a model of several labels: those of a higher probability (default 0.5)",
    )
    _add_flags(parser)


CLASSIFY = Command(
    "classify",
    "the class of a text or a pair, or its labels",
    (Head.CLASSIFICATION, Head.MULTI_LABEL),
    _add_classify_flags,
    _classify,
)
REGRESS = Command(
    "regress", "a number for a text or a pair", (Head.REGRESSION,), _add_flags, _regress
)
