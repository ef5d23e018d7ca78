"""Scores a run's checkpoint, exactly: ``python -m bert_jax.evaluate --workdir runs/base``.

Every validation example counts once, whatever the batch size. The config and the vocabulary come
out of the checkpoint; the data must be those that it was trained with.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import ml_collections

from bert_jax.command_line import ArgumentParser, run
from bert_jax.errors import UserError
from bert_jax.tasks.base import Start, load_task, validation_batches
from bert_jax.training.checkpoints import Checkpoints
from bert_jax.training.evaluation import evaluate
from bert_jax.training.monitor import TOKENS
from bert_jax.training.sharding import (
    ACTIVATION_RULES,
    abstract_parameters,
    batch_shards,
    make_mesh,
)
from bert_jax.training.step import make_evaluation_step


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, scores and prints; returns the exit code."""
    parser = ArgumentParser(prog="python -m bert_jax.evaluate", description=__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run to score")
    parser.add_argument(
        "--step", default="latest", metavar="WHICH", help="latest (default), best, or a step"
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="default: that of the run")
    parser.add_argument(
        "--examples", type=int, metavar="N", help="at most so many; default: the whole split"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    step, values = evaluate_checkpoint(
        arguments.workdir, arguments.step, arguments.batch_size, arguments.examples or 0
    )
    if arguments.json:
        print(json.dumps({"step": step, **values}))
        return 0
    print(f"{arguments.workdir}, step {step:,}")
    width = max(map(len, values))
    for name, value in values.items():
        print(f"  {name:{width}}  {value:.4f}")
    return 0


def evaluate_checkpoint(
    workdir: str | Path, which: str, batch_size: int | None, examples: int
) -> tuple[int, dict[str, float]]:
    """Scores one checkpoint on the validation split.

    Args:
      workdir: the run.
      which: ``latest``, ``best`` or a step.
      batch_size: examples at a time; None for the run's.
      examples: at most so many; 0 for all.

    Returns:
      The checkpoint's step, and its metrics by name.

    Raises:
      UserError: there is no such checkpoint, or the data have changed since.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.choose(which)
        record = checkpoints.record(step)
        config = ml_collections.ConfigDict(record.config)
        if "evaluation" in config:
            config.evaluation.examples = examples
        task = load_task(config, Start(record.assets, record.identity))
        if task.identity() != record.identity:
            raise UserError(
                f"the data of {workdir} have changed since step {step}: they were "
                f"{record.identity} and are {task.identity()}"
            )
        # Any device will do, however many the run had.
        mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
        phase = task.phase_at(step)
        size = phase.batch_size if batch_size is None else batch_size
        if size < 1 or size % batch_shards(mesh):
            raise UserError(
                f"a batch of {size} does not divide over {batch_shards(mesh)} devices; give "
                "another --batch_size"
            )
        if examples < 0 or not task.validation_size(phase):
            raise UserError(
                f"{workdir} has no validation examples to score; check --examples and the corpus"
            )
        with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
            params = checkpoints.restore_params(step, abstract_parameters(task.initialise, mesh))
            batches = validation_batches(task, phase, size)
            evaluation_step = jax.jit(make_evaluation_step(task))
            result = evaluate(evaluation_step, params, batches, task.validation_size(phase), mesh)
    assert result is not None
    result.sums.pop(TOKENS, None)
    return step, task.metrics(result.sums) | task.scores(result.outputs)


if __name__ == "__main__":
    run(main)
