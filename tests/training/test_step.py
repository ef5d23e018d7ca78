"""Updates of models that are frozen in part, with every optimizer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.freezing import FreezeOptions, trainable
from bert_jax.models.losses import cross_entropy_sum
from bert_jax.training.metrics import Ratio
from bert_jax.training.optimizers import NAMES, make_optimizer
from bert_jax.training.partition import count_trainable, split, trained_part
from bert_jax.training.sharding import make_mesh
from bert_jax.training.state import TrainState, abstract_state, initial_state
from bert_jax.training.step import make_train_step

LAYERS = 3
BATCH = {
    "token_ids": np.arange(32, dtype=np.int32).reshape(4, 8),
    "lengths": np.array([8, 5, 8, 3], np.int32),
    "labels": np.array([0, 1, 1, 0], np.int32),
}
MESH = {"data": 1, "fsdp": 1, "tensor": 1}
SETTINGS = {"learning_rate": 0.01, "weight_decay": 0.5, "warmup_steps": 0, "layer_decay": 0.9}
CASES = {
    "lower-half": ({}, FreezeOptions(embeddings=True, layers=2)),
    "encoder": ({}, FreezeOptions(encoder=True)),
    "lora": ({"lora_rank": 2}, FreezeOptions()),
    "adapters": ({"adapter_width": 4}, FreezeOptions(layers=1)),
}


class Classification:
    """Two classes, without dropout."""

    losses = {"loss": 1.0}

    def __init__(self, **settings: Any):
        config = BertConfig(
            vocabulary_size=40,
            layers=LAYERS,
            width=16,
            heads=2,
            feed_forward_width=24,
            max_positions=8,
            initializer_stddev=0.2,
            **settings,
        )
        described = ModelDescription(config, Head.CLASSIFICATION, ("no", "yes"))
        self.initialise = described.initialise
        self.model = described.model()

    def sums(self, params: Any, batch: Any, dropout_key: jax.Array | None) -> dict[str, Ratio]:
        ids = batch["token_ids"]
        logits = self.model.apply(
            {"params": params}, ids, ids % 2, batch["lengths"], deterministic=True
        )
        weights = jnp.ones(batch["labels"].shape)
        return {"loss": Ratio(*cross_entropy_sum(logits, batch["labels"], weights))}


def make_run(name: str, case: str, accumulation_steps: int = 1) -> tuple[TrainState, Any, Any]:
    """A state, the compiled step and the masking of a case."""
    settings, options = CASES[case]
    task = Classification(**settings)
    decay = 1.0 if case == "encoder" else 0.9
    optimizer, schedule = make_optimizer(
        {**SETTINGS, "name": name, "layer_decay": decay}, total_steps=10
    )
    masking = functools.partial(trainable, options=options)
    abstract = abstract_state(task.initialise, optimizer, make_mesh(MESH), masking)
    state = initial_state(task.initialise, optimizer, abstract, jax.random.key(0), masking)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, abstract)
    step = make_train_step(
        task, optimizer, schedule, jax.random.key(1), accumulation_steps, masking
    )
    return state, jax.jit(step), masking


def bits(array: jax.Array) -> np.ndarray:
    return np.asarray(array).view(np.uint32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_does_not_change_by_a_bit(name: str, case: str) -> None:
    state, step, masking = make_run(name, case)
    # Zeros of both signs are the bits that a sum with zero may change.
    start = jax.tree.map(lambda leaf: jnp.where(leaf == 0, -0.0, leaf), state.params)
    state = state.replace(params=start)
    for _ in range(3):
        state, _ = step(state, BATCH)
    masks = flatten_dict(masking(start), sep="/")
    before, after = (flatten_dict(tree, sep="/") for tree in (start, state.params))
    assert {type(mask) for mask in masks.values()} >= {bool}
    for leaf_name, mask in masks.items():
        is_trained = np.broadcast_to(mask, before[leaf_name].shape)
        changed = bits(before[leaf_name]) != bits(after[leaf_name])
        assert not changed[~is_trained].any(), leaf_name
        # Attention's scores do not depend on the key's bias, nor do gradients of LoRA's A at B = 0.
        if is_trained.any() and leaf_name.endswith(("kernel", "lora_b", "scale")):
            assert changed[is_trained].any(), leaf_name


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_of_trained_leaves_only(name: str) -> None:
    state, _, masking = make_run(name, "lora")
    trained, frozen = split(state.params, masking(state.params))
    task = Classification(lora_rank=2)
    optimizer, _ = make_optimizer({"name": name}, total_steps=10)
    everything = abstract_state(task.initialise, optimizer, make_mesh(MESH))
    moments, all_moments = (
        len(jax.tree.leaves(tree)) for tree in (state.optimizer_state, everything.optimizer_state)
    )
    assert len(jax.tree.leaves(frozen)) > 10
    sets = {"adamw": 2, "lamb": 2, "adafactor": 3}[name]
    assert all_moments - moments == sets * len(jax.tree.leaves(frozen))
    first = optax.tree.get(state.optimizer_state, "v" if name == "adafactor" else "mu")
    assert jax.tree.structure(first) == jax.tree.structure(trained)


@pytest.mark.parametrize("case", ["lower-half", "lora"])
def test_accumulation_equals_the_large_batch(case: str) -> None:
    (state, step, _), (_, accumulating, _) = (make_run("adamw", case, parts) for parts in (1, 4))
    whole, parts = step(state, BATCH), accumulating(state, BATCH)
    assert jax.tree.structure(whole) == jax.tree.structure(parts)
    # Adam divides small gradients by their own size, and rounding with them: so the moments.
    moments = (optax.tree.get(each[0].optimizer_state, "mu") for each in (whole, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *moments)


def test_the_norm_is_that_of_what_is_trained() -> None:
    state, step, masking = make_run("adamw", "lower-half")
    task = Classification()
    gradients = jax.jit(jax.grad(lambda params: task.sums(params, BATCH, None)["loss"].total / 4))(
        state.params
    )
    mask = masking(state.params)
    masked = jax.tree.map(lambda leaf, is_trained: leaf * is_trained, gradients, mask)
    _, report = step(state, BATCH)
    norm, whole = optax.tree.norm(masked), optax.tree.norm(gradients)
    assert float(report["gradient_norm"].total) == pytest.approx(float(norm), rel=1e-5)
    assert norm < 0.9 * whole
    # The held part of a leaf has no moments either.
    new, _ = step(state, BATCH)
    for moment, is_trained in zip(
        jax.tree.leaves(optax.tree.get(new.optimizer_state, "mu")),
        jax.tree.leaves(trained_part(mask, mask)),
        strict=True,
    ):
        assert (moment[~np.broadcast_to(is_trained, moment.shape)] == 0).all()


def test_parameters_are_counted() -> None:
    params = {"a": jnp.zeros((4, 3)), "b": jnp.zeros(5), "c": jnp.zeros((2, 2))}
    mask = {"a": np.array([[False], [True], [True], [True]]), "b": False, "c": True}
    count = count_trainable(params, mask)
    assert (count.trained, count.total, count.share) == (9 + 4, 12 + 5 + 4, 13 / 21)
