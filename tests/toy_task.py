"""A second task in one file: tells whether a point lies inside a circle. Also its own config."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax.models.losses import correct_sum, cross_entropy_sum
from bert_jax.tasks.base import Task
from bert_jax.training.metrics import Ratio

VALIDATION_EXAMPLES = 100  # no multiple of the batch size


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "toy_task:CircleClassifier"
    config.seed, config.total_steps, config.batch_size, config.accumulation_steps = 0, 60, 32, 1
    config.log_every_steps, config.evaluate_every_steps, config.checkpoint_every_steps = 1, 20, 10
    config.checkpoints = ml_collections.ConfigDict({"keep_last": 2, "keep_best": True})
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.init_from, config.loader_workers = "", 0
    config.optimizer = ml_collections.ConfigDict({"learning_rate": 0.03, "weight_decay": 0.0})
    return config


class CircleClassifier(Task):
    losses = {"loss": 1.0}

    def initialise(self, key):
        first, second = jax.random.split(key)
        return {
            "inner": {"kernel": jax.random.normal(first, (2, 16)), "bias": jnp.zeros(16)},
            "outer": {"kernel": 0.1 * jax.random.normal(second, (16, 2)), "bias": jnp.zeros(2)},
        }

    def sums(self, params, batch, dropout_key):
        inner = jnp.tanh(batch["points"] @ params["inner"]["kernel"] + params["inner"]["bias"])
        logits = inner @ params["outer"]["kernel"] + params["outer"]["bias"]
        return {
            "loss": Ratio(*cross_entropy_sum(logits, batch["labels"], batch["weights"])),
            "accuracy": Ratio(*correct_sum(logits, batch["labels"], batch["weights"])),
        }

    def _batch(self, seed, end):
        points = np.random.default_rng(seed).normal(size=(end, 2)).astype(np.float32)
        labels = (np.square(points).sum(axis=1) < 1.4).astype(np.int32)
        return {"points": points, "labels": labels, "weights": np.ones(end, np.float32)}

    def training_batch(self, step, rows):
        return {name: array[rows] for name, array in self._batch((1, step), rows.stop).items()}

    def validation_size(self, phase):
        return VALIDATION_EXAMPLES

    def validation_batch(self, phase, number, size, rows):
        first, end = number * size + rows.start, number * size + rows.stop
        batch = self._batch(0, end)
        batch["weights"] = (np.arange(end) < VALIDATION_EXAMPLES).astype(np.float32)
        return {name: array[first:] for name, array in batch.items()}
