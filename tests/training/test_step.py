"""Updates of models that are frozen in part, with every optimizer."""

import functools
from pathlib import Path
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
from bert_jax.training.checkpoints import Checkpoints, RunRecord
from bert_jax.training.metrics import Ratio
from bert_jax.training.optimizers import NAMES, make_optimizer
from bert_jax.training.partition import count_trainable, split, trained_part
from bert_jax.training.sharding import make_mesh
from bert_jax.training.state import TrainState, abstract_state, initial_state
from bert_jax.training.step import StepSettings, make_train_step

LAYERS = 3
BATCH = {
    "token_ids": np.arange(32, dtype=np.int32).reshape(4, 8),
    "lengths": np.array([8, 5, 8, 3], np.int32),
    "labels": np.array([0, 1, 1, 0], np.int32),
}
MESH = {"data": 1, "fsdp": 1, "tensor": 1}
RATES = StepSettings(jax.random.key(1), jnp.float32(0.01))
SETTINGS = {"weight_decay": 0.5, "warmup_steps": 0, "layer_decay": 0.9}
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


@functools.cache
def make_run(name: str, case: str, accumulation_steps: int = 1) -> tuple[TrainState, Any, Any]:
    """A state, the compiled step and the masking of a case."""
    settings, options = CASES[case]
    task = Classification(**settings)
    decay = 1.0 if case == "encoder" else 0.9
    optimizer, schedule = make_optimizer(
        {**SETTINGS, "name": name, "layer_decay": decay, "learning_rate": 1.0}, total_steps=10
    )
    masking = functools.partial(trainable, options=options)
    abstract = abstract_state(task.initialise, optimizer, make_mesh(MESH), masking)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32), abstract.params
    )
    optimizer_state = jax.jit(optimizer.init)(trained_part(params, masking(params)))
    state = TrainState(np.int32(0), params, optimizer_state)
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, abstract)
    step = make_train_step(task, optimizer, schedule, accumulation_steps, masking)
    return state, jax.jit(functools.partial(step, settings=RATES)), masking


def bits(array: jax.Array) -> np.ndarray:
    return np.asarray(array).view(np.uint32)


@pytest.mark.parametrize(
    ("name", "case"),
    [*(("adamw", case) for case in CASES), ("lamb", "lower-half"), ("adafactor", "lower-half")],
)
def test_what_is_frozen_does_not_change_by_a_bit(name: str, case: str) -> None:
    state, step, masking = make_run(name, case)
    # Adding zero changes this one bit, that of the sign.
    start = jax.tree.map(np.copy, state.params)
    start["encoder"]["embeddings"]["position"][:] = -0.0
    start["encoder"]["layers"]["attention"]["output"]["bias"][:] = -0.0
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
        if is_trained.any():
            assert changed[is_trained].any(), leaf_name


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_of_trained_leaves_only(name: str) -> None:
    task = Classification(lora_rank=2)
    optimizer, _ = make_optimizer({"name": name}, total_steps=10)
    masking = functools.partial(trainable, options=FreezeOptions())
    mesh = make_mesh(MESH)
    all_trained = abstract_state(task.initialise, optimizer, mesh)
    abstract = abstract_state(task.initialise, optimizer, mesh, masking)
    assert jax.tree.structure(abstract.params) == jax.tree.structure(all_trained.params)
    trained, frozen = split(abstract.params, masking(abstract.params))
    assert len(jax.tree.leaves(frozen)) > 10
    sets = {"adamw": 2, "lamb": 2, "adafactor": 3}[name]
    moments, all_moments = (
        len(jax.tree.leaves(state.optimizer_state)) for state in (abstract, all_trained)
    )
    assert all_moments - moments == sets * len(jax.tree.leaves(frozen))
    first = optax.tree.get(abstract.optimizer_state, "v" if name == "adafactor" else "mu")
    assert jax.tree.structure(first) == jax.tree.structure(trained)
    for leaf in jax.tree.leaves(abstract):
        assert leaf.sharding.mesh == mesh


def test_a_state_starts_as_its_abstract_says() -> None:
    task = Classification(lora_rank=2)
    optimizer, _ = make_optimizer({}, total_steps=10)
    masking = functools.partial(trainable, options=FreezeOptions())
    abstract = abstract_state(task.initialise, optimizer, make_mesh(MESH), masking)
    state = initial_state(task.initialise, optimizer, abstract, jax.random.key(0), masking)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, abstract)


@pytest.mark.parametrize("case", ["lower-half", "lora"])
def test_accumulation_equals_the_large_batch(case: str) -> None:
    (state, step, _), (_, accumulating, _) = (make_run("adamw", case, parts) for parts in (1, 4))
    whole, parts = step(state, BATCH), accumulating(state, BATCH)
    assert jax.tree.structure(whole) == jax.tree.structure(parts)
    # Adam divides small gradients by their own size, and rounding with them: so the moments.
    moments = (optax.tree.get(each[0].optimizer_state, "mu") for each in (whole, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *moments)


def test_a_first_moment_in_bfloat16_learns_and_goes_on_exactly(tmp_path: Path) -> None:
    task = Classification()
    settings = {"learning_rate": 1.0, "warmup_steps": 0, "first_moment_dtype": "bfloat16"}
    optimizer, schedule = make_optimizer(settings, total_steps=20)
    abstract = abstract_state(task.initialise, optimizer, make_mesh(MESH))
    step = make_train_step(task, optimizer, schedule)
    step = jax.jit(functools.partial(step, settings=RATES))

    def train(state: TrainState, steps: int) -> tuple[TrainState, list[float]]:
        losses = []
        for _ in range(steps):
            state, report = step(state, BATCH)
            losses.append(float(report["loss"].total / report["loss"].weight))
        return state, losses

    state = initial_state(task.initialise, optimizer, abstract, jax.random.key(0))
    half, first_losses = train(state, 10)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(half, RunRecord(10, {}, {}, {}, {}, []))
        checkpoints.committed()
        restored = checkpoints.restore(10, abstract)
    whole, losses = train(half, 10)
    again, same_losses = train(restored, 10)
    assert losses == same_losses
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert losses[-1] < 0.5 * first_losses[0]


def test_the_peak_of_the_learning_rate_is_a_setting_of_the_step() -> None:
    task = Classification()
    rated, plain = (
        make_optimizer({**SETTINGS, "learning_rate": peak}, total_steps=10) for peak in (0.01, 1.0)
    )
    abstract = abstract_state(task.initialise, plain[0], make_mesh(MESH))
    start = initial_state(task.initialise, plain[0], abstract, jax.random.key(0))
    step = jax.jit(make_train_step(task, *plain))
    other = jax.jit(make_train_step(task, *rated))
    state, expected = start, start
    for _ in range(4):
        state, report = step(state, BATCH, RATES)
        one = RATES._replace(learning_rate=jnp.float32(1.0))
        expected, expected_report = other(expected, BATCH, one)
        assert float(report["learning_rate"].total) == pytest.approx(
            float(expected_report["learning_rate"].total)
        )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), state, expected)


def test_the_norm_is_that_of_what_is_trained() -> None:
    state, step, masking = make_run("adamw", "lower-half")
    task = Classification()
    gradients = jax.jit(jax.grad(lambda params: task.sums(params, BATCH, None)["loss"].total / 4))(
        state.params
    )
    mask = masking(state.params)
    masked = jax.tree.map(np.multiply, gradients, mask)

    def norm(tree: Any) -> float:
        return np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))

    after, report = step(state, BATCH)
    assert float(report["gradient_norm"].total) == pytest.approx(norm(masked), rel=1e-5)
    assert norm(masked) < 0.999 * norm(gradients)
    # The part of a leaf that is held has no moments either.
    moments = optax.tree.get(after.optimizer_state, "mu")
    for moment, is_trained in zip(
        jax.tree.leaves(moments), jax.tree.leaves(trained_part(mask, mask)), strict=True
    ):
        assert (np.asarray(moment)[~np.broadcast_to(is_trained, moment.shape)] == 0).all()


def test_parameters_are_counted() -> None:
    params = {"a": jnp.zeros((4, 3)), "b": jnp.zeros(5), "c": jnp.zeros((2, 2))}
    mask = {"a": np.array([[False], [True], [True], [True]]), "b": False, "c": True}
    count = count_trainable(params, mask)
    assert (count.trained, count.total, count.share) == (9 + 4, 12 + 5 + 4, 13 / 21)
