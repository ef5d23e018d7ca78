"""Times from the command to the first step: nothing compiled before, compiled before, gone on.

    python benchmarks/startup.py --config configs/pretrain.py:mini

The command is `python -m bert_jax.train`, in a process of its own each time, on a corpus that is
prepared already; the clock runs from its start until it says that a step is done. First the
directory of compiled programs is empty; then a new run finds what the first one compiled; last, the
second run is gone on with from its checkpoint. Each is done several times; the table gives medians.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cpu_threads import use_cpu
from results import add_results_argument, keep

from bert_jax.command_line import run
from bert_jax.config_file import load_config
from bert_jax.training.preemption import EXIT_PREEMPTED

STARTS = ("nothing compiled", "compiled before", "gone on")
_STEP = re.compile(r"^step [\d,]+/")
_COMPILED = re.compile(r"compiled in ([\d.]+) s")


def start(command: Sequence[str], environ: dict[str, str]) -> tuple[float, float]:
    """Starts a run and stops it after a step; gives the seconds to it, and those of compiling."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seconds = compiling = 0.0
    said = []
    with process:
        for line in process.stderr:
            said.append(line)
            if found := _COMPILED.search(line):
                compiling = float(found[1])
            if not seconds and _STEP.match(line):
                seconds = time.perf_counter() - began
                process.send_signal(signal.SIGTERM)  # it saves, to be gone on with
    if process.returncode != EXIT_PREEMPTED:
        raise SystemExit("".join(said))
    return seconds, compiling


def main() -> None:
    """Starts the runs, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/pretrain.py:mini", help="the recipe")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is done")
    add_results_argument(parser)
    arguments, overrides = parser.parse_known_args()

    use_cpu(arguments.threads)
    load_config(arguments.config)  # what is wrong with it is told before anything starts
    environ = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    compiling: dict[str, list[float]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "bert_jax.train", "--config", arguments.config]
        command += ["--config.log_every_steps=1", *overrides]
        prepared = [*command, "--workdir", f"{directory}/first"]
        start(prepared, environ)  # prepares the built-in corpus, and warms the disk's cache
        for number in range(arguments.rounds):
            place = Path(directory) / str(number)
            for name, run in zip(STARTS, ("first", "second", "second"), strict=True):
                taken = start([*command, "--workdir", str(place / run)], environ)
                seconds[name].append(taken[0])
                compiling[name].append(taken[1])
            shutil.rmtree(place)

    print(f"{arguments.config} {' '.join(overrides)}, {arguments.threads} threads")
    print(f"{'':18} {'s to the first step':>20} {'of it compiling':>16}")
    for name in STARTS:
        medians = statistics.median(seconds[name]), statistics.median(compiling[name])
        print(f"{name:18} {medians[0]:20.1f} {medians[1]:16.1f}")
    first, second, last = (statistics.median(seconds[name]) for name in STARTS)
    keep(
        arguments.results,
        f"from the command to the first step, `{arguments.config}`",
        f"**{first:.1f} s**; {second:.1f} s where it was compiled before; {last:.1f} s to go on "
        "from a checkpoint",
        {"seconds": seconds, "compiling_seconds": compiling},
        {},
    )


if __name__ == "__main__":
    run(main)
