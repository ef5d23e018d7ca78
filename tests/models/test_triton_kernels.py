"""Our kernels for GPUs next to XLA's programs: interpreted on the CPU, and lowered for a GPU.

What they drop is the same to the bit, so that they are compared with dropout on. The same on a GPU,
in bfloat16: ``tests/gpu_parity.py``.
"""

import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn
from jax._src.mesh import AbstractDevice
from jax.sharding import AbstractMesh

from bert_jax.models.attention import dot_product_attention
from bert_jax.models.config import LORA_TARGETS, BertConfig
from bert_jax.models.encoder import Encoder
from bert_jax.models.layers import dropout, gelu, layer_norm
from bert_jax.models.triton_attention import triton_attention
from bert_jax.models.triton_gelu import biased_gelu
from bert_jax.models.triton_norm import residual_norm

Function = Callable[..., jax.Array]


def random(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Normal numbers, float32."""
    rng = np.random.default_rng(5)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def outputs_and_gradients(function: Function, inputs: Any, weights: jax.Array) -> list[jax.Array]:
    """Of a weighted sum of the outputs."""

    def total(inputs: Any) -> tuple[jax.Array, jax.Array]:
        outputs = function(*inputs) * weights
        return jnp.sum(outputs), outputs

    gradients, outputs = jax.jit(jax.grad(total, has_aux=True))(inputs)
    return [outputs, *gradients]


def assert_all_close(ours: list[jax.Array], theirs: list[jax.Array]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=2e-6 * max(1, np.abs(their).max()), rtol=0)


def xla_attention(
    projected: jax.Array, bias: jax.Array, lengths: jax.Array, **drop: Any
) -> jax.Array:
    parts = jnp.unstack(projected + bias, axis=2)
    return dot_product_attention(*parts, lengths, **drop)


@pytest.mark.parametrize(
    ("length", "lengths", "rate"),
    [
        (128, [128, 50], 0.0),
        (128, [128, 50], 0.1),
        (40, [40, 1], 0.3),  # padded inside
        (300, [300, 170], 0.1),  # several blocks, the last of them padded
        (256, [256, 129], 0.0),
        (64, [[30, 20, 10], [0, 5, 59]], 0.1),  # rows of several sequences
        (200, [[130, 70, 0], [5, 90, 90]], 0.1),
    ],
)
def test_attention_equals_xlas(length: int, lengths: list[Any], rate: float) -> None:
    projected, bias, weights = random((2, length, 3, 2, 32), (3, 2, 32), (2, length, 2, 32))
    drop = {"dropout_rate": rate, "dropout_key": jax.random.key(3)} if rate else {}
    if np.ndim(lengths) == 1:  # what padding gives means nothing
        weights *= (np.arange(length) < np.array(lengths)[:, None])[..., None, None]
    results = [
        outputs_and_gradients(
            functools.partial(function, lengths=jnp.array(lengths), **drop),
            (projected, bias),
            weights,
        )
        for function in (functools.partial(triton_attention, interpret=True), xla_attention)
    ]
    assert_all_close(*results)


def test_attention_gives_finite_numbers_for_length_zero() -> None:
    inputs = random((2, 100, 3, 2, 16), (3, 2, 16))
    attend = functools.partial(triton_attention, lengths=jnp.array([0, 100]), interpret=True)
    for array in outputs_and_gradients(attend, inputs, jnp.ones(())):
        assert jnp.isfinite(array).all()


@pytest.mark.parametrize(
    ("shape", "rate"),
    [
        ((2, 32, 64), 0.0),
        ((2, 40, 96), 0.1),  # no power of 2
        ((3, 7, 48), 0.3),  # rows that fill no program
        ((3, 7, 768), 0.1),  # and of which a program computes some at a time
        ((1, 33, 2048), 0.1),
    ],
)
def test_residual_norm_equals_xlas(shape: tuple[int, ...], rate: float) -> None:
    vector = shape[-1:]
    *inputs, weights = random(shape, shape, vector, vector, vector, shape)
    key = jax.random.key(3)

    def ours(
        residual: jax.Array, update: jax.Array, bias: jax.Array, *norm: jax.Array
    ) -> jax.Array:
        return residual_norm(
            residual,
            *norm,
            1e-12,
            update_BLD=update,
            update_bias_D=bias,
            dropout_rate=rate,
            dropout_key=key if rate else None,
            interpret=True,
        )

    def theirs(
        residual: jax.Array, update: jax.Array, bias: jax.Array, *norm: jax.Array
    ) -> jax.Array:
        return layer_norm(residual + dropout(update + bias, rate, key), *norm, 1e-12)

    assert_all_close(
        *(outputs_and_gradients(function, inputs, weights) for function in (ours, theirs))
    )


@pytest.mark.parametrize("shape", [(2, 32, 512), (3, 7, 48), (2, 70, 1000)])
def test_gelu_equals_xlas(shape: tuple[int, ...]) -> None:
    """Also where no block is full, nor a power of 2."""
    *inputs, weights = random(shape, shape[-1:], shape)
    ours = functools.partial(biased_gelu, interpret=True)

    def theirs(projected: jax.Array, bias: jax.Array) -> jax.Array:
        return gelu(projected + bias)

    assert_all_close(
        *(outputs_and_gradients(function, inputs, weights) for function in (ours, theirs))
    )


def test_gelu_is_exact_far_from_zero() -> None:
    far = jnp.linspace(-8.0, 8.0, 4096).reshape(1, 8, 512)
    no_bias = jnp.zeros(512)
    ours = biased_gelu(far, no_bias, interpret=True)
    exact = np.float64(far) * scipy.stats.norm.cdf(np.float64(far))
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: biased_gelu(x, no_bias, interpret=True).sum())(far)).all()


def with_noise(params: Any) -> Any:
    """Parameters of which none is zero, as some are before they are trained."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape), params)


SMALL = BertConfig(
    vocabulary_size=128,
    layers=2,
    width=32,
    heads=2,
    feed_forward_width=64,
    max_positions=16,
    compute_dtype="bfloat16",
)
IDS = np.arange(32, dtype=np.int32).reshape(2, 16)
INPUTS = (IDS, IDS % 2, np.array([16, 5], np.int32))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unroll": 2},
        {"lora_rank": 2, "lora_targets": LORA_TARGETS},
        {"adapter_width": 4},
    ],
)
def test_an_encoder_with_the_kernels_equals_one_without(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a loop and unrolled, where the last layer is XLA's; and where the kernels give way."""
    for module, kernel in (
        ("triton_attention", triton_attention),
        ("triton_norm", residual_norm),
        ("triton_gelu", biased_gelu),
    ):
        monkeypatch.setattr(
            f"bert_jax.models.{module}.{kernel.__name__}",
            functools.partial(kernel, interpret=True),
        )
    config = dataclasses.replace(SMALL, **settings)
    initialise = functools.partial(Encoder(config).init, deterministic=True)
    params = with_noise(nn.unbox(jax.jit(initialise)(jax.random.key(0), *INPUTS)))

    @functools.partial(jax.jit, static_argnums=1)
    def differentiate(params: Any, config: BertConfig) -> Any:
        def total(params: Any) -> tuple[jax.Array, jax.Array]:
            hidden = Encoder(config).apply(
                params,
                *INPUTS,
                deterministic=False,
                positions_BP=np.array([[0, 3, 9], [0, 4, 1]], np.int32),
                rngs={"dropout": jax.random.key(7)},
            )
            hidden = hidden.astype(jnp.float32)
            return jnp.sum(jnp.sin(hidden)), hidden

        return jax.grad(total, has_aux=True)(params)

    names = {"attention": "triton", "residual_norm": "triton", "gelu": "triton"}
    kernels = dataclasses.replace(config, **names)
    ours, theirs = (differentiate(params, each) for each in (kernels, config))
    text = str(jax.make_jaxpr(differentiate, static_argnums=1)(params, kernels))
    for name in ("residual_norm_forward", "gelu_forward"):
        assert (name in text) is not config.is_adapted
    assert "attention_forward" in text
    for our, their in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        # In bfloat16 the two round at other places.
        difference = np.linalg.norm(our - their) / max(np.linalg.norm(their), 1e-3)
        assert difference < 0.05


PROGRAM = """
import json
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from bert_jax.models.triton_attention import triton_attention
from bert_jax.models.triton_gelu import biased_gelu
from bert_jax.models.triton_norm import residual_norm
from bert_jax.training.sharding import ACTIVATION_RULES, make_mesh

def total(arrays, vectors):
    projected, residual, update, weights = arrays
    bias, update_bias, scale, shift = vectors
    drop = {"dropout_rate": 0.2, "dropout_key": jax.random.key(1), "interpret": True}
    context = triton_attention(projected, bias, lengths, **drop)
    hidden = residual_norm(
        residual, scale, shift, 1e-12, update_BLD=update, update_bias_D=update_bias, **drop
    )
    inner = biased_gelu(update, update_bias, interpret=True)
    return sum((a * b).sum() for a, b in zip((context, hidden, inner), weights, strict=True))

keys = iter(jax.random.split(jax.random.key(0), 10))
normal = lambda *shape: jax.random.normal(next(keys), shape)
lengths = jnp.array([16, 7, 1, 12])
arrays = (
    normal(4, 16, 3, 2, 16), normal(4, 16, 32), normal(4, 16, 32),
    (normal(4, 16, 2, 16), normal(4, 16, 32), normal(4, 16, 32)),
)
vectors = normal(3, 2, 16), normal(32), normal(32), normal(32)
differentiate = jax.value_and_grad(total, argnums=(0, 1))
alone = differentiate(arrays, vectors)
differences = []
for data, fsdp, tensor in ((4, 1, 2), (2, 2, 2), (8, 1, 1), (1, 1, 8)):
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
        found = jax.jit(differentiate)(arrays, vectors)
    differences.append(max(
        float(abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(*map(jax.tree.leaves, (found, alone)))
    ))
print(json.dumps(differences))
"""


def test_kernels_drop_and_give_the_same_on_any_mesh() -> None:
    """Also where the mesh does not divide the batch, or the heads."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert all(difference < 1e-4 for difference in json.loads(done.stdout))


# jax 0.12 says that it will give Pallas's Triton backend up; how the kernels go on then is open.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_the_kernels_are_lowered_for_a_gpu() -> None:
    """As far as it goes without one: to what XLA is given."""
    vector = jax.ShapeDtypeStruct((768,), jnp.float32)
    hidden = jax.ShapeDtypeStruct((2, 200, 768), jnp.bfloat16)
    projected = jax.ShapeDtypeStruct((2, 200, 3, 12, 64), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((3, 12, 64), jnp.float32)
    drop = {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}

    def total(projected: Any, bias: Any, hidden: Any, vector: Any) -> jax.Array:
        context = triton_attention(projected, bias, jnp.array([200, 77]), **drop)
        normed = residual_norm(
            hidden, vector, vector, 1e-12, update_BLD=hidden, update_bias_D=vector, **drop
        )
        outputs = context, normed, biased_gelu(hidden, vector)
        return sum(jnp.sum(each.astype(jnp.float32)) for each in outputs)

    device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
        traced = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3))).trace(
            projected, bias, hidden, vector
        )
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel, way in itertools.product(
        ("attention", "residual_norm", "gelu"), ("forward", "backward")
    ):
        name = f"{kernel}_{way}"
        assert f'name = "{name}"' in text
