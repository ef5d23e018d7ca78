"""Kernels next to the XLA implementation: interpreted on the CPU, compiled for TPUs ahead of time.

No GPU is needed: of cuDNN's the tests see that the call is made, and lowered, as it should be.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.models.attention import dot_product_attention
from bert_jax.models.config import LORA_TARGETS, BertConfig
from bert_jax.models.encoder import Encoder
from bert_jax.models.fused_attention import cudnn_attention, splash_attention
from bert_jax.training.sharding import ACTIVATION_RULES, BATCH_AXES, MESH_AXES

BATCH, HEADS, HEAD_WIDTH = 2, 2, 64
interpreted = functools.partial(splash_attention, interpret=True)


def arrays(length: int, dtype: str, batch: int = BATCH) -> list[jax.Array]:
    """Queries, keys, values, and something to weigh the outputs with."""
    rng = np.random.default_rng(5)
    shape = (batch, length, HEADS, HEAD_WIDTH)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def attend(
    implementation: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    weights: jax.Array,
    lengths: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Outputs, and the gradients of their weighted sum."""

    def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = implementation(*inputs, lengths)
        return jnp.sum((outputs * weights).astype(jnp.float32)), outputs

    gradients, outputs = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    return outputs, gradients


@pytest.mark.parametrize(
    ("length", "lengths", "dtype"),
    [
        (128, [128, 50], "float32"),
        (100, [100, 1], "float32"),  # padded inside
        (200, [129, 200], "bfloat16"),
        (640, [640, 300], "float32"),  # several blocks
    ],
)
def test_splash_equals_xla_in_values_and_gradients(
    length: int, lengths: list[int], dtype: str
) -> None:
    inputs = arrays(length, dtype)
    results = [
        jax.jit(functools.partial(attend, implementation))(*inputs, jnp.array(lengths))
        for implementation in (interpreted, dot_product_attention)
    ]
    # In bfloat16 probabilities are rounded before the product in one, and not in the other.
    tolerance = {"float32": 1e-5, "bfloat16": 2**-7}[dtype]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        ours, theirs = (np.asarray(each, np.float32) for each in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(1, np.abs(theirs).max()))


def test_splash_gives_finite_numbers_for_length_zero() -> None:
    inputs = arrays(100, "float32")
    outputs, gradients = attend(interpreted, *inputs, jnp.array([0, 100]))
    for array in (outputs, *gradients):
        assert jnp.isfinite(array).all()


@pytest.fixture(scope="module")
def tpu_mesh() -> Mesh:
    """Four TPU v5e chips that the compiler knows, and this machine need not have."""
    pytest.importorskip("libtpu")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    return Mesh(np.reshape(devices, (2, 1, 2)), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    ("length", "dtype"), [(128, "bfloat16"), (512, "bfloat16"), (512, "float32"), (200, "bfloat16")]
)
def test_splash_compiles_for_tpu_and_each_device_computes_its_part(
    length: int, dtype: str, tpu_mesh: Mesh
) -> None:
    def place(shape: tuple[int, ...], dtype: str, *axes: object) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(tpu_mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    array = place((4, length, 4, HEAD_WIDTH), dtype, BATCH_AXES, None, "tensor")
    lengths = place((4,), "int32", BATCH_AXES)
    with jax.set_mesh(tpu_mesh), nn.logical_axis_rules(ACTIVATION_RULES):
        step = jax.jit(functools.partial(attend, splash_attention))
        text = step.lower(*[array] * 4, lengths).compile().as_text()
    # One kernel forward and one backward, of which none needs another device's numbers.
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "permute("))


def test_splash_in_a_mesh_that_does_not_divide_the_batch_is_computed_whole(tpu_mesh: Mesh) -> None:
    array = jax.ShapeDtypeStruct((3, 128, 4, HEAD_WIDTH), "bfloat16")
    with jax.set_mesh(tpu_mesh), nn.logical_axis_rules(ACTIVATION_RULES):
        lowered = jax.jit(splash_attention).lower(
            array, array, array, jax.ShapeDtypeStruct((3,), "int32")
        )
    assert lowered.out_info.shape == array.shape


def test_cudnn_is_told_of_padding_by_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes without a GPU: to what XLA is given."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    *inputs, weights = arrays(128, "bfloat16")
    step = jax.jit(functools.partial(attend, cudnn_attention))
    traced = step.trace(*inputs, weights, jnp.array([128, 50]))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # With a mask the calls would be fmhaScaleBiasSoftmax, and its backward.
    calls = re.findall(r"@__cudnn\$(\w+)\(", text)
    assert calls == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    assert re.findall(r"mask_type[^A-Z]*([A-Z_]+)", text) == ["PADDING", "PADDING"]
    assert re.findall(r"fmha_scale\W+22: ([0-9.]+)", text) == ["0.125", "0.125"]


SMALL = BertConfig(
    vocabulary_size=128,
    layers=2,
    width=32,
    heads=2,
    feed_forward_width=64,
    max_positions=16,
    attention_dropout=0.0,
)


IDS = np.arange(32, dtype=np.int32).reshape(2, 16)
INPUTS = (IDS, IDS % 2, np.array([16, 5], np.int32))


@functools.cache
def initial_params() -> dict[str, Any]:
    initialise = functools.partial(Encoder(SMALL).init, deterministic=True)
    return nn.unbox(jax.jit(initialise)(jax.random.key(0), *INPUTS))


def sum_of_sines(params: dict[str, Any], config: BertConfig) -> jax.Array:
    positions = np.zeros((2, 3), np.int32)
    hidden = Encoder(config).apply(params, *INPUTS, deterministic=True, positions_BP=positions)
    return jnp.sum(jnp.sin(hidden))


def test_an_encoder_with_splash_attention_equals_one_with_xla(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a loop, and computed once more in the backward pass."""
    monkeypatch.setattr("bert_jax.models.fused_attention.splash_attention", interpreted)
    differentiate = jax.jit(jax.value_and_grad(sum_of_sines), static_argnums=1)
    results = [
        differentiate(
            initial_params(), dataclasses.replace(SMALL, attention=attention, remat=remat)
        )
        for attention, remat in (("splash", "full"), ("xla", "none"))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *results)


def test_the_attention_of_few_queries_is_xlas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unrolled layers the last is computed at three positions only."""
    called = []

    def count(*inputs: jax.Array, **dropout: object) -> jax.Array:
        called.append(inputs[0].shape)
        return interpreted(*inputs, **dropout)

    monkeypatch.setattr("bert_jax.models.fused_attention.splash_attention", count)
    config = dataclasses.replace(SMALL, attention="splash", unroll=2)
    jax.eval_shape(functools.partial(sum_of_sines, config=config), initial_params())
    assert called == [(2, 16, 2, 16)]


@pytest.mark.parametrize("attention", [splash_attention, cudnn_attention])
def test_dropout_is_refused(attention: Callable[..., jax.Array]) -> None:
    *inputs, _ = arrays(8, "bfloat16")
    with pytest.raises(UserError, match=r"cannot drop probabilities.* is 0.1; set it to 0"):
        attention(*inputs, jnp.array([8, 8]), dropout_rate=0.1, dropout_key=jax.random.key(0))


@pytest.mark.parametrize(
    "settings", [{}, {"unroll": 2}, {"lora_rank": 2, "lora_targets": LORA_TARGETS}]
)
def test_biases_that_attention_is_spared_change_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values' before cuDNN's attention are added after it; keys' before it, or XLA's, are not."""
    monkeypatch.setattr(
        "bert_jax.models.fused_attention.cudnn_attention",
        lambda *arrays, **_: dot_product_attention(*arrays),
    )
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16", **settings)
    ids = np.arange(32, dtype=np.int32).reshape(2, 16)
    inputs = (ids, ids % 2, np.array([16, 5], np.int32))
    params = nn.unbox(Encoder(config).init(jax.random.key(0), *inputs, deterministic=True))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), params)
    bias = params["params"]["layers"]["attention"]["query_key_value"]["bias"]
    params["params"]["layers"]["attention"]["query_key_value"]["bias"] = 10 * bias
    positions = np.array([[0, 3, 9], [0, 4, 1]], np.int32)

    def differentiate(attention: str) -> Any:
        def total(params: Any) -> jax.Array:
            encoder = Encoder(dataclasses.replace(config, attention=attention))
            hidden = encoder.apply(params, *inputs, deterministic=True, positions_BP=positions)
            return jnp.sum(jnp.sin(hidden.astype(jnp.float32)))

        value, gradients = jax.value_and_grad(total)(params)
        return value, gradients["params"]["layers"]["attention"]

    (value, gradients), (found, others) = differentiate("xla"), differentiate("cudnn")
    assert abs(found - value) < 0.05 * abs(value)
    for ours, theirs in zip(*map(jax.tree.leaves, (others, gradients)), strict=True):
        assert np.linalg.norm(ours - theirs) <= 0.05 * np.linalg.norm(theirs)
    np.testing.assert_array_equal(gradients["query_key_value"]["bias"][:, 1], 0.0)
    assert np.abs(gradients["query_key_value"]["bias"][:, 2]).max() > 0.0
