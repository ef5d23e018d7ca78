"""A task's batches as one process makes them: its own rows of each, ahead of when they are used."""

from collections.abc import Generator, Iterator

import numpy as np
from jax.sharding import Mesh

from bert_jax.data.loader import prefetch
from bert_jax.data.rows import join_batches
from bert_jax.tasks.base import Phase, Task
from bert_jax.training.sharding import batch_shards, process_shards


def process_rows(batch_size: int, mesh: Mesh) -> tuple[slice, ...]:
    """The rows of a global batch that this process makes, as few contiguous blocks as can be."""
    size = batch_size // batch_shards(mesh)
    shards = process_shards(mesh)
    starts = [shard for shard in shards if shard - 1 not in shards]
    ends = [shard + 1 for shard in shards if shard + 1 not in shards]
    return tuple(slice(s * size, e * size) for s, e in zip(starts, ends, strict=True))


def training_batches(
    task: Task, first_step: int, mesh: Mesh
) -> Generator[dict[str, np.ndarray], None, None]:
    """This process's rows of the batches from ``first_step`` to the run's end, made ahead."""
    # Asked here, because worker processes must not start JAX.
    rows = {phase: process_rows(phase.batch_size, mesh) for phase in task.phases}

    def make(step: int) -> dict[str, np.ndarray]:
        blocks = rows[task.phase_at(step)]
        return join_batches([task.training_batch(step, block) for block in blocks])

    config = task.config
    return prefetch(make, first_step, config.total_steps, workers=config.loader_workers)


def validation_batches(
    task: Task, phase: Phase, mesh: Mesh, batch_size: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of all validation batches, made ahead; the last is filled up.

    Args:
      task: the task.
      phase: the phase whose examples are evaluated.
      mesh: the device mesh.
      batch_size: examples in a global batch; as the phase says by default.
    """
    size = batch_size or phase.evaluated_at_once
    rows = process_rows(size, mesh)

    def make(number: int) -> dict[str, np.ndarray]:
        return join_batches([task.validation_batch(phase, number, size, block) for block in rows])

    return prefetch(make, 0, -(-task.validation_size(phase) // size))
