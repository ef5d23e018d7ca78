"""What a command of ``bert_jax.predict`` is, and the flags that commands share."""

import argparse
import dataclasses
from collections.abc import Callable, Collection

from bert_jax.errors import UserError
from bert_jax.models.config import COMPUTE_DTYPES
from bert_jax.models.description import Head
from bert_jax.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Command:
    """One of the things to ask a model.

    Attributes:
      name: as it is typed.
      explanation: for ``--help``.
      heads: the models that can answer; none means any.
      add_flags: adds the command's own flags to those that ``add_common_flags`` gives.
      run: answers.
    """

    name: str
    explanation: str
    heads: Collection[Head]
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Pretrained, argparse.Namespace], None]

    def check(self, model: Pretrained, checkpoint: str) -> None:
        """Refuses a model that cannot answer.

        Raises:
          UserError: it has another head.
        """
        if self.heads and model.description.head not in self.heads:
            raise UserError(
                f"{checkpoint} is a model for {model.description.head}, and {self.name} needs one "
                f"for {' or '.join(self.heads)}"
            )


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of every command."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run's workdir, one of its checkpoints, or a Hugging Face directory",
    )
    parser.add_argument("--step", default="latest", help="latest (default), best, or a step")
    parser.add_argument(
        "--adapter", metavar="FILE", help="put this adapter.safetensors on the checkpoint"
    )
    parser.add_argument(
        "--compute_dtype",
        choices=COMPUTE_DTYPES,
        help="of products and activations (default: as the model was trained)",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="lines of text, or a .jsonl, .csv or .tsv table; may be compressed (default: standard "
        "input, where no texts are given)",
    )
    parser.add_argument(
        "--text", default="text", metavar="COLUMN", help="of a table (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", help="default: standard output")
    parser.add_argument("--json", action="store_true", help="write a JSON object a line")


def add_batch_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of commands that answer in batches."""
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="texts at once (default 32)"
    )
