"""The tasks, by the names that configs use."""

import importlib
from collections.abc import Mapping

import ml_collections

from bert_jax.errors import UserError
from bert_jax.tasks.base import NEW, Start, Task

REGISTRY: Mapping[str, str] = {
    "pretraining": "bert_jax.tasks.pretraining:Pretraining",
    "classification": "bert_jax.tasks.sequence_classification:Classification",
    "multi_label": "bert_jax.tasks.sequence_classification:MultiLabelClassification",
    "regression": "bert_jax.tasks.sequence_classification:Regression",
    "question_answering": "bert_jax.tasks.question_answering:QuestionAnswering",
    "tagging": "bert_jax.tasks.tagging:Tagging",
    "choice": "bert_jax.tasks.choice:Choice",
    "embedding": "bert_jax.tasks.embedding:Embedding",
}


def load_task(config: ml_collections.ConfigDict, start: Start = NEW) -> Task:
    """Makes the task that ``config.task`` names: a registered name, or ``module:Class``.

    Args:
      config: the recipe; the task's own ``config`` may differ from it.
      start: the checkpoint that the task begins with, if there is one.

    Raises:
      UserError: there is no such task.
    """
    module, colon, name = REGISTRY.get(config.task, config.task).partition(":")
    task = None
    if colon:
        try:
            task = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise  # a task's own missing import, not a missing task
    if task is None:
        raise UserError(
            f"config.task={config.task!r} is no task; use one of {', '.join(REGISTRY)}, or "
            "'module:Class' for your own"
        )
    return task(config, start)
