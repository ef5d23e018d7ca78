"""The command ``fill-mask``: words for every ``[MASK]`` of a text."""

import argparse
from collections.abc import Iterator

from bert_jax.errors import UserError
from bert_jax.models.description import Head
from bert_jax.prediction.command import Command
from bert_jax.prediction.outputs import Answer, write_answers
from bert_jax.prediction.sources import read_examples, whole_lines
from bert_jax.pretrained import Pretrained
from bert_jax.tasks.fill_mask import fill_masks


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top", type=int, default=5, metavar="K", help="candidates (default 5)")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text with [MASK] in it")


def _run(model: Pretrained, arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} must be at least 1")
    write_answers(_answers(model, arguments), arguments.output, as_json=arguments.json)


def _answers(model: Pretrained, arguments: argparse.Namespace) -> Iterator[Answer]:
    for example in read_examples(arguments, whole_lines(arguments)):
        text = example.fields["text"]
        try:
            fillings = fill_masks(
                model.model,
                model.params,
                model.tokenizer,
                text,
                min(arguments.top, model.tokenizer.size),
                max_length=model.config.max_positions,
            )
        except UserError as error:
            raise UserError(f"{example.place}: {error}") from None
        lines = [text]
        for number, filling in enumerate(fillings, start=1):
            if len(fillings) > 1:
                lines.append(f"  [MASK] {number}")
            for token, probability in zip(filling.tokens, filling.probabilities, strict=True):
                lines.append(f"  {probability:6.1%}  {token}")
        record = {"text": text, "fillings": [filling._asdict() for filling in fillings]}
        yield Answer(record, "\n".join(lines))


FILL_MASK = Command(
    "fill-mask", "words for every [MASK] of a text", {Head.PRETRAINING}, _add_flags, _run
)
