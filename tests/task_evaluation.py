"""What tests of tasks share: parameters, sums, and an evaluation in batches of any size."""

from collections.abc import Callable
from typing import Any

import jax

from bert_jax.tasks.base import Batch, Task
from bert_jax.tasks.batches import validation_batches
from bert_jax.training.evaluation import Evaluation, evaluate
from bert_jax.training.metrics import Sums
from bert_jax.training.sharding import make_mesh, unbox
from bert_jax.training.step import make_evaluation_step


def initialise(task: Task) -> Any:
    """Random parameters."""
    return jax.jit(lambda key: unbox(task.initialise(key)))(jax.random.key(1))


def compiled_sums(task: Task) -> Callable[[Any, Batch], Sums]:
    """The task's sums of parameters and a batch, without dropout."""
    return jax.jit(lambda params, batch: task.sums(params, batch, None))


def run_evaluation(task: Task, params: Any, batch_size: int | None = None) -> Evaluation:
    """Evaluates on one device."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    phase = task.phases[0]
    batches = validation_batches(task, phase, mesh, batch_size)
    step = jax.jit(make_evaluation_step(task))
    return evaluate(step, params, batches, task.validation_size(phase), mesh)
