"""Scores a run's checkpoint, exactly: ``python -m bert_jax.evaluate --workdir runs/base``.

Every example counts once, whatever the batch size. The config and the vocabulary come out of the
checkpoint. A fine-tuned model is scored on the split that it was validated on, or on another::

    python -m bert_jax.evaluate --workdir runs/sst2 --split test --predictions SST-2.tsv
    python -m bert_jax.evaluate --workdir runs/news --data more.jsonl --predictions more.out.jsonl

Where rows of classes, labels or values to be told have none, the predictions are all that there is.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections

from bert_jax.command_line import ArgumentParser, run
from bert_jax.errors import UserError
from bert_jax.formats.predictions import SUFFIXES, check_name, write_predictions
from bert_jax.models.config import KERNEL_FIELDS
from bert_jax.tasks.base import Start, Task
from bert_jax.tasks.batches import validation_batches
from bert_jax.tasks.registry import load_task
from bert_jax.training.checkpoints import Checkpoints
from bert_jax.training.evaluation import Evaluation, evaluate
from bert_jax.training.monitor import TOKENS
from bert_jax.training.progress import follow
from bert_jax.training.result import null_if_undefined
from bert_jax.training.sharding import (
    ACTIVATION_RULES,
    abstract_parameters,
    batch_shards,
    make_mesh,
)
from bert_jax.training.step import make_evaluation_step


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, scores and prints; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.predictions:
        check_name(arguments.predictions)
    scored = evaluate_checkpoint(
        arguments.workdir,
        arguments.step,
        arguments.batch_size,
        arguments.examples,
        split=arguments.split,
        data=arguments.data,
    )
    if not scored.values and not arguments.predictions:
        raise UserError(
            "the rows have no labels, so there is nothing to score; give --predictions FILE to "
            "write what the model says of them"
        )
    # Before predictions are written: whatever is wrong with the file, the scores are there.
    if arguments.json:
        print(json.dumps({"step": scored.step} | _to_json(scored), allow_nan=False), flush=True)
    else:
        print(f"{arguments.workdir}, step {scored.step:,}")
        width = max(map(len, scored.values), default=0)
        for name, value in scored.values.items():
            print(f"  {name:{width}}  {value:.4f}")
        for line in describe_details(scored.details):
            print(f"  {line}", flush=True)
    if arguments.predictions:
        if not scored.predictions:
            raise UserError("the run's task predicts nothing; leave --predictions out")
        write_predictions(arguments.predictions, scored.predictions)
        if not arguments.json:
            print(f"wrote {len(scored.predictions):,} predictions to {arguments.predictions}")
    return 0


def _to_json(scored: "Scored") -> dict[str, Any]:
    """Scores and details."""
    return null_if_undefined(scored.values) | (
        {"details": scored.details} if scored.details else {}
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m bert_jax.evaluate", description=__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run to score")
    parser.add_argument(
        "--step", default="latest", metavar="WHICH", help="latest (default), best, or a step"
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="default: as the run evaluates")
    parser.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help="of a pretraining run, about so many, some of each corpus; default: the whole split",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="what the config names as data.validation (default) or data.test",
    )
    which.add_argument(
        "--data",
        default="",
        metavar="FILE|SPLIT",
        help="other data: a table, or a split of TFDS; of several, with commas, the loss and what "
        "follows the scores are of all together",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help=f"write what the model says of each row, in the format of the ending: "
        f"{', '.join(SUFFIXES)}; .tsv is GLUE's submission, .json SQuAD's",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


class Scored(NamedTuple):
    """What a checkpoint is worth on a split.

    Attributes:
      step: the checkpoint's.
      values: its metrics by name; none where the rows have no labels.
      details: what else the task has to say, as plain JSON.
      predictions: of each row, in the data's order, with its ``index``; of some tasks none.
    """

    step: int
    values: dict[str, float]
    details: dict[str, Any]
    predictions: list[dict[str, Any]]


def evaluate_checkpoint(
    workdir: str | Path,
    which: str,
    batch_size: int | None = None,
    examples: int | None = None,
    *,
    split: str = "validation",
    data: str = "",
) -> Scored:
    """Scores one checkpoint.

    Args:
      workdir: the run.
      which: ``latest``, ``best`` or a step.
      batch_size: examples at a time; None for the run's, or a few more for these devices.
      examples: of a pretraining run, so many, rounded up for each corpus; None for all.
      split: ``validation`` or ``test``, as the run's config has them.
      data: other data instead, of fine-tuned models: files, or splits of the run's TFDS data set,
        with commas between several.

    Raises:
      UserError: there is no such checkpoint or split, or the data have changed since.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.choose(which)
        record = checkpoints.record(step)
        config = ml_collections.ConfigDict(record.config)
        if "evaluation" in config:
            config.evaluation.examples = examples or 0
        elif examples is not None:
            raise UserError(f"a run of {config.task!r} is scored whole; leave --examples out")
        is_other = _choose_data(config, split, data)
        for field in KERNEL_FIELDS:
            if field in config.get("model", {}):
                config.model[field] = "xla"  # any device will do, whatever the run was made for
        task = load_task(config, Start(record.assets, record.identity, trains=False))
        found = task.identity()
        ignored = {"validation"} if is_other else set()
        known = record.identity.items()
        changed = [name for name, was in known if name not in ignored and found.get(name) != was]
        if changed:
            others = ", or say with --data which rows to score"
            raise UserError(
                f"the data of {workdir} have changed since step {step} ({', '.join(changed)}); "
                f"restore them{others if changed == ['validation'] else ''}"
            )
        # However many devices the run had.
        mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
        phase = task.phase_at(step)
        shards = batch_shards(mesh)
        size = -(-phase.evaluated_at_once // shards) * shards if batch_size is None else batch_size
        if size < 1 or size % shards:
            raise UserError(
                f"a batch of {size} does not divide over {shards} devices; give another "
                "--batch_size"
            )
        if (examples or 0) < 0 or not task.validation_size(phase):
            raise UserError(
                f"{workdir} has no validation examples to score; check --examples and the corpus"
            )
        with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
            params = checkpoints.restore_params(step, abstract_parameters(task.initialise, mesh))
            batches = validation_batches(task, phase, mesh, size)
            evaluation_step = jax.jit(make_evaluation_step(task))
            examples_in_all = task.validation_size(phase)
            shown = follow(batches, -(-examples_in_all // size), "batches")
            result = evaluate(evaluation_step, params, shown, examples_in_all, mesh)
    assert result is not None
    return _scored(step, task, result)


def _choose_data(config: ml_collections.ConfigDict, split: str, data: str) -> bool:
    """Puts what is to be scored in the place of the run's validation data, if it is other data."""
    if split == "validation" and not data:
        return False
    if "validation" not in config.get("data", {}):
        raise UserError(
            f"a run of {config.task!r} has a validation split only; leave --split and --data out"
        )
    if data and all(Path(name.strip()).expanduser().is_file() for name in data.split(",")):
        config.data.tfds = ""  # a file, though the run's own data are a TFDS data set
    config.data.validation = data or config.data.get("test", "")
    if not config.data.validation:
        raise UserError("the run's config names no test data; give them with --data FILE")
    return True


def _scored(step: int, task: Task, result: Evaluation) -> Scored:
    result.sums.pop(TOKENS, None)
    values: dict[str, float] = {}
    # Without labels nothing has any weight.
    if any(result.sums[name].weight for name in task.losses):
        values = task.metrics(result.sums) | task.scores(result.outputs)
    predictions = task.predictions(result.outputs)
    indices = task.indices() or range(len(predictions))
    if predictions:
        predictions = [
            {"index": index, **row} for index, row in zip(indices, predictions, strict=True)
        ]
    return Scored(step, values, task.details(result.outputs), predictions)


def describe_details(details: Mapping[str, Any]) -> list[str]:
    """A task's details as lines: a confusion matrix as a table, all else as JSON."""
    rest = dict(details)
    lines = []
    if matrix := rest.pop("confusion_matrix", None):
        labels = rest.pop("labels")
        table = [["truth \\ predicted", *labels]]
        table += [[name, *map(str, row)] for name, row in zip(labels, matrix, strict=True)]
        first, *widths = (max(map(len, column)) for column in zip(*table, strict=True))
        for name, *row in table:
            cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join([name.ljust(first), *cells]))
    return lines + [f"{name}: {json.dumps(value)}" for name, value in rest.items()]


if __name__ == "__main__":
    run(main)
