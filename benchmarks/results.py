"""What the benchmarks found: a file for each machine, and the README's table of them.

    python benchmarks/train_step.py --results benchmarks/results/amd-epyc.json
    python benchmarks/results.py

The first adds to a machine's file, in the place of what the same command found before; the second
prints the table.
"""

import argparse
import itertools
import json
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.training.atomic_file import write_atomically
from bert_jax.training.environment import environment, processor

DIRECTORY = Path(__file__).parent / "results"
_WRITTEN = ("--results", "--profile")  # arguments that name what a benchmark writes


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--results`, which all benchmarks have."""
    parser.add_argument(
        "--results", type=_results_file, help="this machine's file, to add the numbers to"
    )


def _machine() -> dict[str, str]:
    """What does not depend on how a benchmark was started."""
    return {"processor": processor(), "cores": str(os.cpu_count())}


def _results_file(name: str) -> Path:
    """A path, refused before anything is measured if it is another machine's."""
    path = Path(name)
    if path.exists():
        try:
            other = json.loads(path.read_text())["machine"]
        except (ValueError, KeyError, TypeError):
            raise argparse.ArgumentTypeError(f"{path} is no file of results") from None
        if other != _machine():
            raise argparse.ArgumentTypeError(f"{path} is of another machine: {other}")
    return path


def keep(
    path: Path | None,
    what: str,
    figure: str,
    numbers: Any,
    versions: Mapping[str, str],
    others: Collection[str] = (),
) -> None:
    """Adds what a benchmark found to a machine's file; nothing without one.

    Args:
      path: of the file, which may not be there yet.
      what: was measured, in words.
      figure: what it came to, in words.
      numbers: all that was measured: plain JSON.
      versions: of the packages of others that took part.
      others: arguments that asked for something else too, which this would have been without.

    Raises:
      UserError: the file has results of another accelerator.
    """
    if path is None:
        return
    # Where a benchmark did not start JAX, its version is told without a search for accelerators.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    content: dict[str, Any] = {"machine": _machine(), "results": []}
    if path.exists():
        content = json.loads(path.read_text())
    command = _command([each for each in sys.argv if each not in others])
    device = environment()["device"]
    devices = {result["environment"]["device"] for result in content["results"]} - {"cpu"}
    if device != "cpu" and devices - {device}:
        raise UserError(
            f"{path} is of {', '.join(devices)}, and this of {device}; name another file"
        )
    kept = [
        result
        for result in content["results"]
        if (result["command"], result["what"]) != (command, what)
    ]
    result = {
        "what": what,
        "figure": figure,
        "command": command,
        "environment": environment() | dict(versions),
        "numbers": numbers,
    }
    content["results"] = sorted([*kept, result], key=lambda each: (each["command"], each["what"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _command(argv: Sequence[str]) -> str:
    """The command line to copy: without what it writes, and of other files the names only."""
    program, *rest = argv
    arguments: list[str] = []
    for argument in itertools.chain.from_iterable(
        each.split("=", 1) if each.startswith("--") else [each] for each in rest
    ):
        is_written = bool(arguments) and arguments[-1] in _WRITTEN
        if is_written:
            arguments.pop()
        else:
            arguments.append(Path(argument).name if os.path.isabs(argument) else argument)
    return shlex.join(["python", f"benchmarks/{Path(program).name}", *arguments])


def table(paths: Sequence[Path]) -> list[str]:
    """Lines of Markdown: what was measured, what it came to, on which machine, by which command."""
    lines = ["| what | figure | machine, jax | command |", "|---|---|---|---|"]
    for path in sorted(paths):
        content = json.loads(path.read_text())
        processor = f"{content['machine']['processor']}, {content['machine']['cores']} cores"
        for result in content["results"]:
            device, version = (result["environment"][name] for name in ("device", "jax"))
            machine = f"{processor if device == 'cpu' else device}, {version}"
            cells = (result["what"], result["figure"], machine, f"`{result['command']}`")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(list(DIRECTORY.glob("*.json")))))
