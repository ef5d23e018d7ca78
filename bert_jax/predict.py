"""Answers from a checkpoint.

    python -m bert_jax.predict fill-mask --checkpoint runs/base "Paris is the [MASK] of France."

Texts are arguments, or lines of standard input where there are none.
"""

import json
import sys
from collections.abc import Iterable, Sequence

from bert_jax.command_line import ArgumentParser, run
from bert_jax.errors import UserError
from bert_jax.models.description import Head
from bert_jax.pretrained import load
from bert_jax.tasks.fill_mask import fill_masks


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
    loaded = load(arguments.checkpoint, arguments.step)
    if loaded.description.head is not Head.PRETRAINING:
        raise UserError(
            f"{arguments.checkpoint} is a model for {loaded.description.head}, and fill-mask needs "
            f"one for {Head.PRETRAINING}"
        )
    texts: Iterable[str] = arguments.texts or (line.rstrip("\n") for line in sys.stdin)
    for text in texts:
        fillings = fill_masks(
            loaded.model,
            loaded.params,
            loaded.tokenizer,
            text,
            min(arguments.top, loaded.tokenizer.size),
            max_length=loaded.config.max_positions,
        )
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


if __name__ == "__main__":
    run(main)
