import dataclasses
import functools
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bert_jax.errors import UserError
from bert_jax.models.adaptation import (
    LowRankUpdate,
    adaptation_params,
    base_params,
    merge_lora,
)
from bert_jax.models.config import LORA_TARGETS, BertConfig, count_parameters, sized_config
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.flops import train_flops_per_token
from bert_jax.models.freezing import FreezeOptions, trainable
from bert_jax.training.partition import count_trainable, join, split
from bert_jax.training.sharding import make_mesh, parameter_shardings, unbox
from bert_jax.training.transformations import decay_mask

CONFIG = BertConfig(
    vocabulary_size=50, layers=2, width=32, heads=2, feed_forward_width=96, max_positions=16
)
LORA = dataclasses.replace(CONFIG, lora_rank=4, lora_alpha=6.0)
ALL_LORA = dataclasses.replace(LORA, lora_targets=LORA_TARGETS)
ADAPTERS = dataclasses.replace(CONFIG, adapter_width=8)
ADAPTED = {
    "lora": LORA,
    "all-lora": ALL_LORA,
    "adapters": ADAPTERS,
    "both": dataclasses.replace(LORA, adapter_width=8),
}
RNG = np.random.default_rng(0)
INPUTS = (
    RNG.integers(0, 50, (3, 12)).astype(np.int32),
    RNG.integers(0, 2, (3, 12)).astype(np.int32),
    np.array([12, 7, 2], np.int32),
)
KEY = jax.random.key(0)


def classifier(config: BertConfig) -> ModelDescription:
    return ModelDescription(config, Head.CLASSIFICATION, ("no", "yes"))


@functools.cache
def initialise(config: BertConfig) -> dict[str, Any]:
    return jax.jit(lambda key: unbox(classifier(config).initialise(key)))(jax.random.key(0))


@functools.partial(jax.jit, static_argnames="config")
def scores(params: dict[str, Any], config: BertConfig) -> jax.Array:
    return classifier(config).model().apply({"params": params}, *INPUTS, deterministic=True)


def shaken(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with noise everywhere, so that no update is zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params
    )


@pytest.mark.parametrize("config", ADAPTED.values(), ids=ADAPTED)
def test_an_adapted_model_starts_as_its_base(config: BertConfig) -> None:
    plain, adapted = initialise(CONFIG), initialise(config)
    assert jax.tree.structure(base_params(adapted)) == jax.tree.structure(base_params(plain))
    # From one key: the base does not draw on the adaptation's randomness.
    jax.tree.map(np.testing.assert_array_equal, base_params(adapted), base_params(plain))
    # The added terms are exact zeros; the compiler orders the other sums in another way.
    np.testing.assert_allclose(scores(adapted, config), scores(plain, CONFIG), atol=1e-7)
    for name, leaf in flatten_dict(adaptation_params(adapted), sep="/").items():
        if name.endswith(("lora_b", "up/kernel", "up/bias")):
            assert (leaf == 0).all()


def test_without_adaptation_there_are_no_parameters_of_it() -> None:
    params = initialise(dataclasses.replace(CONFIG, lora_targets=LORA_TARGETS))
    assert adaptation_params(params) == {}
    jax.tree.map(np.testing.assert_array_equal, base_params(params)["encoder"], params["encoder"])


def test_the_names_of_what_is_added() -> None:
    def names(config: BertConfig) -> set[str]:
        tree = jax.eval_shape(lambda key: unbox(classifier(config).initialise(key)), KEY)
        return set(flatten_dict(adaptation_params(tree), sep="/"))

    assert names(LORA) == {
        f"encoder/layers/attention/{target}_update/lora_{matrix}"
        for target in ("query", "value")
        for matrix in "ab"
    }
    assert len(names(ALL_LORA)) == 2 * len(LORA_TARGETS)
    norms = {
        f"encoder/{norm}/{name}"
        for norm in ("embeddings/norm", "layers/attention_norm", "layers/feed_forward_norm")
        for name in ("scale", "bias")
    }
    assert names(ADAPTERS) == norms | {
        f"encoder/layers/{block}_adapter/{half}/{name}"
        for block in ("attention", "feed_forward")
        for half in ("down", "up")
        for name in ("kernel", "bias")
    }


@pytest.mark.parametrize("config", ADAPTED.values(), ids=ADAPTED)
def test_every_parameter_is_placed_decayed_or_not_and_counted(config: BertConfig) -> None:
    boxed = jax.eval_shape(classifier(config).initialise, KEY)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    shardings = flatten_dict(parameter_shardings(boxed, mesh), sep="/")
    decayed = flatten_dict(decay_mask(unbox(boxed)), sep="/")
    assert shardings.keys() == decayed.keys()
    for name, sharding in shardings.items():
        if "_update/lora_" in name:
            assert decayed[name]
            split_axes = {"fsdp", "tensor"} & set(sharding.spec)
            assert len(split_axes) == 1, name
    added = sum(leaf.size for leaf in jax.tree.leaves(unbox(boxed)))
    plain = jax.eval_shape(classifier(CONFIG).initialise, KEY)
    added -= sum(leaf.size for leaf in jax.tree.leaves(unbox(plain)))
    assert count_parameters(config) - count_parameters(CONFIG) == added > 0


@pytest.mark.parametrize("contracted", [1, 2])
def test_gradients_of_a_low_rank_update(contracted: int) -> None:
    """Against y = s (x A) B and its derivatives, written out in float64."""
    shape, scale = (3, 4, 5), 1.5
    module = LowRankUpdate(
        shape, ("width", "heads", "head_width"), 2, scale, jnp.dtype("float32"), contracted
    )
    inner, outer = shape[:contracted], shape[contracted:]
    rng = np.random.default_rng(2)
    x, a, b, cotangent = (
        rng.normal(size=size) for size in ((7, *inner), (*inner, 2), (2, *outer), (7, *outer))
    )
    params = {"lora_a": a.astype(np.float32), "lora_b": b.astype(np.float32)}

    def loss(params: dict[str, Any]) -> jax.Array:
        return jnp.sum(module.apply({"params": params}, x.astype(np.float32)) * cotangent)

    flat_x, flat_a, flat_b = x.reshape(7, -1), a.reshape(-1, 2), b.reshape(2, -1)
    flat_cotangent = cotangent.reshape(7, -1)
    value, gradients = jax.value_and_grad(loss)(params)
    expected = np.sum(scale * flat_x @ flat_a @ flat_b * flat_cotangent)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    expected_a = scale * flat_x.T @ flat_cotangent @ flat_b.T
    expected_b = scale * flat_a.T @ flat_x.T @ flat_cotangent
    np.testing.assert_allclose(gradients["lora_a"], expected_a.reshape(a.shape), rtol=1e-4)
    np.testing.assert_allclose(gradients["lora_b"], expected_b.reshape(b.shape), rtol=1e-4)


def test_a_starts_in_the_authors_range() -> None:
    config = dataclasses.replace(ALL_LORA, lora_rank=16)
    for name, leaf in flatten_dict(adaptation_params(initialise(config)), sep="/").items():
        if name.endswith("lora_a"):
            inputs = 96 if "feed_forward_output" in name else 32
            assert 0.9 < jnp.abs(leaf).max() * np.sqrt(inputs) <= 1, name
            assert jnp.std(leaf) == pytest.approx(1 / np.sqrt(3 * inputs), rel=0.1), name


@pytest.mark.parametrize("config", [LORA, ALL_LORA], ids=["lora", "all-lora"])
def test_merged_equals_unmerged(config: BertConfig) -> None:
    params = shaken(initialise(config))
    before = jax.tree.map(np.array, params)
    merged, plain = merge_lora(params, config)
    assert plain == CONFIG
    assert jax.tree.structure(merged) == jax.tree.structure(initialise(CONFIG))
    expected = scores(params, config)
    np.testing.assert_allclose(scores(merged, plain), expected, rtol=1e-5, atol=1e-5)
    unadapted = params | base_params(params)
    assert not np.allclose(scores(unadapted, CONFIG), expected, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_what_cannot_be_merged() -> None:
    with pytest.raises(UserError, match="adapters .adapter_width 8. cannot be merged"):
        merge_lora({}, ADAPTED["both"])
    with pytest.raises(UserError, match="no LoRA to merge"):
        merge_lora({}, CONFIG)


def lowered_gradient(config: BertConfig) -> jax.stages.Lowered:
    """The gradient of a loss by what is trained."""
    params = jax.eval_shape(lambda key: unbox(classifier(config).initialise(key)), KEY)
    trained, frozen = split(params, trainable(params, FreezeOptions()))
    model = classifier(config).model()

    def loss(trained: Any, frozen: Any) -> jax.Array:
        apply = model.apply({"params": join(trained, frozen)}, *INPUTS, deterministic=True)
        return jnp.sum(jnp.square(apply))

    return jax.jit(jax.grad(loss)).lower(trained, frozen)


@pytest.mark.parametrize("config", ADAPTED.values(), ids=ADAPTED)
def test_no_gradient_of_the_frozen_kernels_is_computed(config: BertConfig) -> None:
    def products(compiled: jax.stages.Compiled) -> Counter[str]:
        return Counter(re.findall(r"= f32\[([,\d]+)\]\S* dot\(", compiled.as_text() or ""))

    full, adapted = (
        # So wide that most of the FLOPs are products', however a compiler counts the others.
        lowered_gradient(dataclasses.replace(each, width=64, feed_forward_width=192)).compile()
        for each in (CONFIG, config)
    )
    # Of query, key, value and attention's output; and of the pooler, which is trained anyway.
    assert products(full)["64,64"] >= 5
    assert products(adapted)["64,64"] == 1
    # Of inner and output, transposed or not.
    assert products(full)["64,192"] + products(full)["192,64"] >= 2
    assert products(adapted)["64,192"] + products(adapted)["192,64"] == 0
    assert adapted.cost_analysis()["flops"] < 0.85 * full.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [
        ({"size": "base"}, 0.005, 0.02),
        ({"size": "L6_H384"}, 0.005, 0.02),  # MiniLM
    ],
    ids=["base", "minilm"],
)
def test_the_trained_share_is_small(shape: dict[str, Any], low: float, high: float) -> None:
    config = sized_config(**shape, vocabulary_size=30522, lora_rank=8)
    params = jax.eval_shape(lambda key: unbox(classifier(config).initialise(key)), KEY)
    count = count_trainable(params, trainable(params, FreezeOptions()))
    # LoRA of query and value, the pooler, the classifier.
    width, layers = config.width, config.layers
    assert count.trained == layers * 2 * 8 * 2 * width + (width**2 + width) + (2 * width + 2)
    assert count.total == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert low < count.share < high


def test_flops_of_frozen_weights() -> None:
    plain, adapted = (train_flops_per_token(c, 16, 0.0) for c in (CONFIG, LORA))
    weights = CONFIG.layers * (4 * 32**2 + 2 * 32 * 96)
    assert plain - adapted == 2 * weights


def test_the_compute_type_is_kept() -> None:
    exact = ADAPTED["both"]
    rounded = dataclasses.replace(exact, compute_dtype="bfloat16")
    params = shaken(initialise(exact))
    hidden, _ = jax.eval_shape(
        lambda params: (
            ModelDescription(rounded, Head.NONE)
            .model()
            .apply({"params": params}, *INPUTS, deterministic=True)
        ),
        params,
    )
    assert hidden.dtype == jnp.bfloat16
    error = np.abs(scores(params, rounded) - scores(params, exact))
    assert 0 < error.max() < 16 * 2**-8


def test_a_description_with_adaptation_survives_json() -> None:
    described = classifier(dataclasses.replace(ALL_LORA, adapter_width=8))
    assert ModelDescription.from_json(described.to_json()) == described
    assert isinstance(hash(ModelDescription.from_json(described.to_json()).config), int)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"adapter_width": -2}, "adapter_width is -2"),
        ({"lora_alpha": 0.0}, "lora_alpha is 0.0"),
        ({"lora_targets": ("query", "dense")}, "'dense'.*; give one or more of query, key"),
        ({"lora_targets": ("query", "query")}, "each once"),
        ({"lora_targets": ()}, "give one or more"),
    ],
)
def test_unusable_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **settings)
