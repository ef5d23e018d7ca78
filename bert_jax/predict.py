"""Answers from a checkpoint.

    python -m bert_jax.predict fill-mask --checkpoint runs/base "Paris is the [MASK] of France."

Texts are arguments, or lines of standard input where there are none.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from bert_jax.command_line import ArgumentParser, run
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.heads import PretrainingModel
from bert_jax.tasks.fill_mask import fill_masks
from bert_jax.tasks.pretraining import initialise_model, make_model
from bert_jax.training.checkpoints import Checkpoints
from bert_jax.training.sharding import abstract_parameters, make_mesh


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and answers; returns the exit code."""
    parser = ArgumentParser(prog="python -m bert_jax.predict", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fill = commands.add_parser("fill-mask", help="words for every [MASK] of a text")
    fill.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's workdir")
    fill.add_argument("--step", default="latest", help="latest (default), best, or a step")
    fill.add_argument("--top", type=int, default=5, metavar="K", help="candidates (default 5)")
    fill.add_argument("--json", action="store_true", help="print a JSON object a line")
    fill.add_argument("texts", nargs="*", metavar="TEXT", help="a text with [MASK] in it")
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} must be at least 1")
    model, params, tokenizer = load_pretrained(arguments.checkpoint, arguments.step)
    texts: Iterable[str] = arguments.texts or (line.rstrip("\n") for line in sys.stdin)
    for text in texts:
        fillings = fill_masks(model, params, tokenizer, text, min(arguments.top, tokenizer.size))
        if arguments.json:
            print(json.dumps({"text": text, "fillings": [f._asdict() for f in fillings]}))
            continue
        print(text)
        for number, filling in enumerate(fillings, start=1):
            if len(fillings) > 1:
                print(f"  [MASK] {number}")
            for token, probability in zip(filling.tokens, filling.probabilities, strict=True):
                print(f"  {probability:6.1%}  {token}")
    return 0


def load_pretrained(
    workdir: str | Path, which: str = "latest"
) -> tuple[PretrainingModel, Any, WordPieceTokenizer]:
    """Loads a pretrained model and its vocabulary from a checkpoint, and nothing else.

    Raises:
      UserError: there is no such checkpoint, or it is of another task.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.choose(which)
        record = checkpoints.record(step)
        config = ml_collections.ConfigDict(record.config)
        if config.task != "pretraining":
            raise UserError(f"{workdir} is a run of {config.task}, and fill-mask needs pretraining")
        tokenizer = WordPieceTokenizer.from_json(record.assets["tokenizer.json"])
        model = make_model(config, tokenizer.size)
        mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
        abstract = abstract_parameters(lambda key: initialise_model(model, key), mesh)
        return model, checkpoints.restore_params(step, abstract), tokenizer


if __name__ == "__main__":
    run(main)
