"""What tests of fine-tuning tasks share: parameters, and an evaluation in batches of any size."""

from typing import Any

import jax

from bert_jax.tasks.base import Task, validation_batches
from bert_jax.training.evaluation import Evaluation, evaluate
from bert_jax.training.sharding import make_mesh, unbox
from bert_jax.training.step import make_evaluation_step


def initialise(task: Task) -> Any:
    """Random parameters."""
    return jax.jit(lambda key: unbox(task.initialise(key)))(jax.random.key(1))


def run_evaluation(task: Task, params: Any, batch_size: int | None = None) -> Evaluation:
    """Evaluates on one device."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    phase = task.phases[0]
    batches = validation_batches(task, phase, mesh, batch_size)
    step = jax.jit(make_evaluation_step(task))
    return evaluate(step, params, batches, task.validation_size(phase), mesh)
