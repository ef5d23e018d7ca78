"""The kernels of a GPU, on one, in bfloat16, next to XLA's program in float32: prints, and fails.

    python tests/gpu_parity.py

Relative errors of outputs and gradients, in the Euclidean norm. What a CPU can tell of the kernels
is in ``tests/models/test_triton_kernels.py``.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.models.attention import dot_product_attention
from bert_jax.models.fused_attention import cudnn_attention
from bert_jax.models.layers import dropout, gelu, layer_norm
from bert_jax.models.triton_attention import triton_attention
from bert_jax.models.triton_gelu import biased_gelu
from bert_jax.models.triton_norm import residual_norm

TOLERANCE = 0.02  # a bfloat16 has 8 bits
RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.bfloat16)


def errors(kernel: Callable[..., Any], exact: Callable[..., Any], *inputs: jax.Array) -> list[str]:
    """Of a kernel's outputs and of the gradients of their sine."""

    def differentiate(function: Callable[..., Any], inputs: Any) -> list[jax.Array]:
        def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            outputs = function(*inputs).astype(jnp.float32)
            return jnp.sum(jnp.sin(outputs)), outputs

        places = tuple(range(len(inputs)))
        gradients, outputs = jax.jit(jax.grad(total, argnums=places, has_aux=True))(*inputs)
        return [outputs, *gradients]

    wide = tuple(each.astype(jnp.float32) for each in inputs)
    pairs = zip(differentiate(kernel, inputs), differentiate(exact, wide), strict=True)
    found = [
        float(np.linalg.norm(np.float64(ours) - theirs) / np.linalg.norm(theirs))
        for ours, theirs in pairs
    ]
    return [f"{each:.1e}{'' if each < TOLERANCE else ' FAILED'}" for each in found]


def check_attention(kernel: str, length: int, lengths: Any, rate: float, width: int) -> list[str]:
    """Errors of attention; where there is padding, of what is not."""
    lengths = jnp.array(lengths)
    drop = {"dropout_rate": rate, "dropout_key": jax.random.key(1)} if rate else {}
    real = (jnp.arange(length) < lengths.reshape(len(lengths), -1).sum(1)[:, None])[..., None, None]

    def exact(projected: jax.Array, bias: jax.Array) -> jax.Array:
        parts = jnp.unstack(projected + bias, axis=2)
        return real * dot_product_attention(*parts, lengths, **drop)

    def ours(projected: jax.Array, bias: jax.Array) -> jax.Array:
        if kernel == "cudnn":
            return real * cudnn_attention(*jnp.unstack(projected + bias, axis=2), lengths)
        return real * triton_attention(projected, bias.astype(jnp.float32), lengths, **drop)

    return errors(ours, exact, normal(len(lengths), length, 3, 4, width), normal(3, 4, width))


def check_residual_norm(batch: int, length: int, width: int, rate: float) -> list[str]:
    """Errors of what ends a block."""
    key = jax.random.key(2)

    def exact(residual: Any, update: Any, bias: Any, scale: Any, shift: Any) -> jax.Array:
        return layer_norm(residual + dropout(update + bias, rate, key), scale, shift, 1e-12)

    def ours(residual: Any, update: Any, *vectors: jax.Array) -> jax.Array:
        bias, scale, shift = (vector.astype(jnp.float32) for vector in vectors)
        drop = {"dropout_rate": rate, "dropout_key": key if rate else None}
        norm = functools.partial(residual_norm, update_BLD=update, update_bias_D=bias, **drop)
        return norm(residual, scale, shift, 1e-12)

    hidden = (normal(batch, length, width) for _ in range(2))
    return errors(ours, exact, *hidden, *(normal(width) for _ in range(3)))


def check_gelu(batch: int, length: int, width: int) -> list[str]:
    """Errors of GELU, and of the bias before it."""

    def ours(projected: jax.Array, bias: jax.Array) -> jax.Array:
        return biased_gelu(projected, bias.astype(jnp.float32))

    def exact(projected: jax.Array, bias: jax.Array) -> jax.Array:
        return gelu(projected + bias)

    return errors(ours, exact, normal(batch, length, width), normal(width))


def main() -> int:
    """Checks all kernels at BERT's shapes, and at odd ones."""
    results: dict[str, list[str]] = {}
    for kernel, length, lengths, rate, width in (
        ("triton", 128, [128, 50, 1], 0.1, 64),
        ("triton", 512, [512, 300], 0.1, 64),
        ("triton", 512, [512, 300], 0.0, 64),
        ("triton", 200, [200, 77], 0.1, 64),
        ("triton", 128, [[30, 20, 10], [5, 5, 118]], 0.1, 64),
        ("triton", 32, [32, 9], 0.1, 32),
        ("cudnn", 128, [128, 50, 1], 0.0, 64),
        ("cudnn", 512, [512, 300], 0.0, 64),
    ):
        name = f"attention by {kernel}, length {length}, {np.shape(lengths)} sequences, {rate}"
        results[name] = check_attention(kernel, length, lengths, rate, width)
    for shape in ((4, 128, 768, 0.1), (4, 128, 1024, 0.1), (3, 7, 384, 0.0)):
        results[f"residual norm, {shape}"] = check_residual_norm(*shape)
    for each in ((4, 128, 3072), (4, 128, 4096), (3, 7, 1000)):
        results[f"gelu, {each}"] = check_gelu(*each)
    for name, found in results.items():
        print(f"{name:70} {' '.join(found)}")
    return any("FAILED" in each for found in results.values() for each in found)


if __name__ == "__main__":
    sys.exit(main())
