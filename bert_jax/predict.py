"""Answers from a checkpoint.

    python -m bert_jax.predict fill-mask --checkpoint runs/base "Paris is the [MASK] of France."
    python -m bert_jax.predict classify --checkpoint runs/sst2 --input reviews.jsonl --json
    python -m bert_jax.predict answer --checkpoint runs/squad --context "Ann sat." "Who sat?"
    python -m bert_jax.predict embed --checkpoint runs/sentences --input lines.txt --output it.npy

Texts are arguments, a file's, or lines of standard input where there are none. A file of any size
is answered in the memory of a small one, in its order; of ``similar`` that holds for the texts that
are searched, not for the queries.
"""

import argparse
import sys
from collections.abc import Sequence

from bert_jax.command_line import ArgumentParser, run, terminated_as_exception
from bert_jax.prediction.answers import ANSWER
from bert_jax.prediction.choice import CHOOSE
from bert_jax.prediction.command import Command, add_common_flags
from bert_jax.prediction.embeddings import EMBED, SIMILAR
from bert_jax.prediction.fill_mask import FILL_MASK
from bert_jax.prediction.sequences import CLASSIFY, REGRESS
from bert_jax.prediction.tags import TAG
from bert_jax.pretrained import load, load_adapter

COMMANDS: Sequence[Command] = (
    FILL_MASK,
    CLASSIFY,
    REGRESS,
    ANSWER,
    TAG,
    CHOOSE,
    EMBED,
    SIMILAR,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and answers; returns the exit code."""
    parser = ArgumentParser(
        prog="python -m bert_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        own = parsers.add_parser(
            command.name, help=command.explanation, description=command.explanation
        )
        add_common_flags(own)
        command.add_flags(own)
    arguments = parser.parse_args(argv)
    chosen = next(command for command in COMMANDS if command.name == arguments.command)
    model = load(arguments.checkpoint, arguments.step)
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.adapter is not None:
        model = load_adapter(arguments.adapter, model)
    if arguments.compute_dtype is not None:
        model = model.in_dtype(arguments.compute_dtype)
    chosen.check(model, arguments.checkpoint)
    with terminated_as_exception():
        chosen.run(model, arguments)
    return 0


if __name__ == "__main__":
    run(main)
