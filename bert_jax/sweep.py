"""Trains a recipe for every combination of some settings and seeds, and compares the runs.

    python -m bert_jax.sweep --config configs/glue.py:rte --workdir runs/rte --seeds 0,1,2 \
        --grid optimizer.learning_rate=1e-5,2e-5,3e-5 --grid batch_size=16,32 \
        --config.init_from=runs/base

Every run is an ordinary one of ``bert_jax.train`` in a directory of its own, one after the other.
The same command again goes on where the sweep stopped; with more seeds or values it adds the runs
that are missing. At the end stands a table: mean ± standard deviation over the seeds (with n-1) of
each validation metric, of the best checkpoint where the recipe keeps it, and otherwise of the last.
``sweep.json`` has the same numbers. Exit codes are those of ``train``.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

from bert_jax.command_line import ArgumentParser, run, take_overrides
from bert_jax.config_file import as_json, load_config, override_config, split_at_commas
from bert_jax.errors import UserError
from bert_jax.training.atomic_file import write_atomically
from bert_jax.training.checkpoints import DIRECTORY
from bert_jax.training.comparison import Point, Settings, best_of, shared_metrics, table
from bert_jax.training.compiled_programs import DIRECTORY as COMPILED
from bert_jax.training.continuation import config_changes
from bert_jax.training.preemption import Preemption
from bert_jax.training.result import (
    RESULT,
    Result,
    from_json,
    null_if_undefined,
    read_result,
    to_json,
)
from bert_jax.training.workdir import claim_workdir

SWEEP = "sweep.json"


class _Runner(Preemption):
    """Runs programs; SIGTERM and Ctrl-C are passed on to the one under way.

    Args:
      compiled: the directory in which the programs share what JAX compiled, unless the user has
        named one.
    """

    def __init__(self, compiled: Path) -> None:
        super().__init__()
        self._environment = {"JAX_COMPILATION_CACHE_DIR": str(compiled.resolve())} | os.environ
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: list[int] = []  # signals that the process has not got yet

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._pending.append(number)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._pending and self._process is not None:
            self._process.send_signal(self._pending.pop())

    def __call__(self, command: Sequence[str]) -> int:
        """Runs a program to its end; returns its exit code, 128 + N if signal N ended it."""
        # In a group of its own, or it would get a terminal's Ctrl-C twice, which means "at once".
        self._process = subprocess.Popen(command, env=self._environment, process_group=0)
        self._pass_on()  # what came while it was started
        code = self._process.wait()
        self._process = None
        if code < 0:  # before a run can answer signals, it dies of them
            return self.exit_code if self.requested else 128 - code
        return code


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, makes the runs that are missing and prints the table."""
    rest, overrides = take_overrides(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(rest)
    seeds = _seeds(arguments.seeds)
    if any(key == "seed" for key, _ in overrides):
        raise UserError("a sweep has the seeds of --seeds; give it in the place of --config.seed")
    grid = [_values(setting) for setting in arguments.grid]
    names = [key for key, _ in grid]
    if len(set(names)) < len(names):
        raise UserError("--grid names a key twice; give all its values in one --grid")
    combinations = [
        tuple(zip(names, values, strict=True))
        for values in itertools.product(*(values for _, values in grid))
    ]
    runs = {
        (settings, seed): [*overrides, *settings, ("seed", seed)]
        for settings in combinations
        for seed in seeds
    }
    # Every combination is tried before the first one runs.
    configs = {key: _resolve(arguments.config, given) for key, given in runs.items()}
    with claim_workdir(arguments.workdir) as workdir, _Runner(workdir / COMPILED) as runner:
        record = _Record(workdir)
        for (settings, seed), config in configs.items():
            record.check(_directory(settings, seed), config)
        points: list[Point] = []
        for settings in combinations:
            for seed in seeds:
                directory = _directory(settings, seed)
                if directory in record.results:
                    continue
                if runner.requested:
                    return runner.exit_code
                record.begin(directory, configs[settings, seed])
                print(f"sweep: {workdir / directory}", file=sys.stderr, flush=True)
                code = runner(_command(arguments.config, workdir / directory, runs[settings, seed]))
                if code:
                    record.forget_if_nothing_was_learnt(directory)
                    return code
                record.finish(directory)
            results = [record.results[_directory(settings, seed)] for seed in seeds]
            points.append(Point(settings, tuple(results)))
            if arguments.keep == "best":
                for point in points:
                    if point is not best_of(points):
                        for seed in seeds:
                            _delete_checkpoints(workdir / _directory(point.settings, seed))
        record.conclude(points, seeds)
    print("\n".join(table(points)))
    best = best_of(points).settings
    print(f"best: {workdir / _name(best)}")
    for seed in seeds:
        if not (workdir / _directory(best, seed) / DIRECTORY).exists():
            print(
                f"note: {workdir / _directory(best, seed)} has no checkpoint any more, because "
                "other settings were the best before; its scores remain"
            )
    return 0


def _command(specification: str, workdir: Path, settings: Sequence[tuple[str, str]]) -> list[str]:
    command = [sys.executable, "-m", "bert_jax.train", "--config", specification]
    command += ["--workdir", str(workdir)]
    return command + [f"--config.{key}={value}" for key, value in settings]


def _delete_checkpoints(workdir: Path) -> None:
    shutil.rmtree(workdir / DIRECTORY, ignore_errors=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m bert_jax.sweep",
        usage="%(prog)s --config FILE[:ARGUMENT] --workdir DIR [--seeds 0,1,2] "
        "[--grid KEY=VALUE,VALUE ...] [--keep all|best] [--config.KEY=VALUE ...]",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]", help="the recipe")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where the runs are kept")
    parser.add_argument("--seeds", default="0", help="numbers with commas (default: 0)")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="a key of the config and its values; every combination of several is run",
    )
    parser.add_argument(
        "--keep",
        choices=("all", "best"),
        default="all",
        help="best: delete the checkpoints of a point's runs as soon as another is better",
    )
    return parser


def _seeds(text: str) -> list[str]:
    seeds = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds) or len(set(map(int, seeds))) < len(seeds):
        raise UserError(f"--seeds takes different whole numbers such as 0,1,2, not {text!r}")
    return [str(int(seed)) for seed in seeds]


def _values(setting: str) -> tuple[str, list[str]]:
    key, equals, text = setting.removeprefix("config.").partition("=")
    values = [value.strip() for value in split_at_commas(text)]
    if not equals or not all(values) or len(set(values)) < len(values):
        raise UserError(f"--grid takes KEY=VALUE,VALUE with different values, not {setting!r}")
    if key == "seed":
        raise UserError("--grid takes no seed; give --seeds")
    if key in ("task", "selection"):
        raise UserError(f"runs of different {key}s cannot be compared; give --config.{key}")
    return key, values


def _resolve(specification: str, settings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A run's config as JSON has it."""
    config = load_config(specification)
    for key, text in settings:
        override_config(config, key, text)
    return as_json(config)


def _name(settings: Settings) -> str:
    """A point's directory, such as ``learning_rate=1e-5,batch_size=16``."""
    lasts = [key.rpartition(".")[2] for key, _ in settings]
    keys = lasts if len(set(lasts)) == len(lasts) else [key for key, _ in settings]
    pairs = zip(keys, settings, strict=True)
    return ",".join(f"{key}={quote(value, safe='()')}" for key, (_, value) in pairs) or "default"


def _directory(settings: Settings, seed: str) -> str:
    return f"{_name(settings)}/seed={seed}"


class _Record:
    """``sweep.json``: the runs that were begun, their configs and results, and the conclusion.

    Attributes:
      results: of the finished runs, by directory.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._path = workdir / SWEEP
        self._content: dict[str, Any] = {"runs": {}}
        if self._path.exists():
            try:
                self._content = json.loads(self._path.read_text(encoding="utf-8"))
                self.results = self._results()
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{self._path} is damaged; restore it, or give another --workdir"
                ) from None
        self.results = self._results()

    def _results(self) -> dict[str, Result]:
        runs = self._content["runs"].items()
        return {name: from_json(run["result"]) for name, run in runs if run["result"]}

    def check(self, directory: str, config: Mapping[str, Any]) -> None:
        """Refuses a run that was begun with another config.

        Raises:
          UserError: it was.
        """
        begun = self._content["runs"].get(directory)
        if begun and (found := config_changes(begun["config"], config)):
            raise UserError(
                f"{self._workdir / directory} was begun with other settings ({', '.join(found)}); "
                "give them as they were, or another --workdir"
            )

    def begin(self, directory: str, config: Mapping[str, Any]) -> None:
        """Notes a run before it starts."""
        self._content["runs"][directory] = {"config": config, "result": None}
        self._write()

    def forget_if_nothing_was_learnt(self, directory: str) -> None:
        """Lets a run that ended before its first checkpoint be begun with other settings."""
        checkpoints = self._workdir / directory / DIRECTORY
        if not checkpoints.is_dir() or not any(checkpoints.iterdir()):
            del self._content["runs"][directory]
            self._write()

    def finish(self, directory: str) -> None:
        """Notes the result of a run that has ended well.

        Raises:
          UserError: it has no validation metrics to compare, or was of other data than the others.
        """
        result = read_result(self._workdir / directory / RESULT)
        if not result.values:
            raise UserError(
                f"{self._workdir / directory} evaluated nothing, so there is nothing to compare; "
                "give it validation data"
            )
        # Other settings may make other rows of the same data; another seed does not.
        point = os.path.dirname(directory)
        for other, theirs in self.results.items():
            same = os.path.dirname(other) == point
            if same and theirs.identity and theirs.identity != result.identity:
                raise UserError(
                    f"the data have changed since {self._workdir / other} was trained, so that "
                    f"{self._workdir / directory} cannot be compared; sweep in another --workdir"
                )
        self._content["runs"][directory]["result"] = to_json(result)
        self.results[directory] = result
        self._write()

    def conclude(self, points: Sequence[Point], seeds: Sequence[str]) -> None:
        """Notes every point's means and deviations, and the best."""
        best = best_of(points)
        self._content |= {
            "selection": best.results[0].selection,
            "higher_is_better": best.results[0].higher_is_better,
            "seeds": [int(seed) for seed in seeds],
            "points": [
                {
                    "directory": _name(point.settings),
                    "settings": dict(point.settings),
                    "metrics": {
                        metric: null_if_undefined(
                            {"mean": point.mean(metric), "deviation": point.deviation(metric)}
                        )
                        for metric in shared_metrics(points)
                    },
                }
                for point in points
            ],
            "best": _name(best.settings),
        }
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, json.dumps(self._content, indent=2).encode() + b"\n")


if __name__ == "__main__":
    run(main)
