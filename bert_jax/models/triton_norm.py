"""The end of a block in one kernel for NVIDIA GPUs: bias, dropout, residual sum and LayerNorm.

XLA compiles it to nine kernels, forward and backward, each of which reads the hidden states anew;
here they are two (written in Pallas, which compiles them by Triton).

Shapes: B batch, L length, D model width, R rows of a step, W the width as a power of 2, P programs.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from bert_jax.models.layers import STEPS, draw, is_kept
from bert_jax.models.logical_axes import dividing_axes, on_each_device

Array = jax.Array

# Elements that are computed at a time, a power of 2. The backward pass holds more of each: of as
# many as the forward pass has, registers would leave room for few programs.
_FORWARD_ELEMENTS = 4096
_BACKWARD_ELEMENTS = 2048
# Rows that a program of the backward pass computes one after the other, a power of 2.
_ROWS_OF_PROGRAM = 16
_WARPS = 4


class _Settings(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
      epsilon: added to the variance.
      kept: of `STEPS` random numbers, how many keep an element.
      interpret: run the kernels step by step on whatever platform there is, slowly.
    """

    epsilon: float
    kept: int
    interpret: bool


class _Vectors(NamedTuple):
    """The parameters of a block's end: its last projection's bias, and LayerNorm's two."""

    update_bias_D: Array
    scale_D: Array
    bias_D: Array


def residual_norm(
    residual_BLD: Array,
    scale_D: Array,
    bias_D: Array,
    epsilon: float,
    *,
    update_BLD: Array,
    update_bias_D: Array,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    interpret: bool = False,
) -> Array:
    """LayerNorm of the residual and what dropout leaves of the update, with float32 statistics.

    Drops by the bits that `layers.dropout` would use. In a mesh, each device computes its rows.

    Args:
      residual_BLD: what the block was given, bfloat16.
      update_BLD: what it made of it, bfloat16, without
      update_bias_D: its last projection's bias, float32.
      scale_D: LayerNorm's, float32.
      bias_D: LayerNorm's, float32.
      epsilon: added to the variance.
      dropout_rate: dropped share of the update.
      dropout_key: typed PRNG key for it; without one nothing is dropped.
      interpret: run the kernels step by step on whatever platform there is, slowly.

    Returns:
      Array [B, L, D] in the inputs' type.
    """
    kept, words = draw(dropout_rate, dropout_key)
    settings = _Settings(epsilon, kept, interpret)
    axes = dividing_axes("batch", len(residual_BLD))

    def normalise_part(
        residual_BLD: Array, update_BLD: Array, vectors: _Vectors, words: Array
    ) -> Array:
        width = residual_BLD.shape[-1]
        rows = residual_BLD.size // width
        first = jnp.uint32(lax.axis_index(axes) if axes else 0) * np.uint32(rows)
        key = jnp.stack([*words, first, jnp.uint32(0)])
        flat = [array.reshape(rows, width) for array in (residual_BLD, update_BLD)]
        return _normalise(*flat, vectors, key, settings).reshape(residual_BLD.shape)

    vectors = _Vectors(update_bias_D, scale_D, bias_D)
    rows, whole = PartitionSpec(axes), PartitionSpec()
    mapped = on_each_device(normalise_part, (rows, rows, whole, whole), rows)
    return mapped(residual_BLD, update_BLD, vectors, words)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalise(
    residual_TD: Array, update_TD: Array, vectors: _Vectors, key: Array, settings: _Settings
) -> Array:
    """The same for rows T, with a key uint32 [4]: two words for dropout, then the first row."""
    return _normalise_forward(residual_TD, update_TD, vectors, key, settings)[0]


def _normalise_forward(
    residual_TD: Array, update_TD: Array, vectors: _Vectors, key: Array, settings: _Settings
) -> tuple[Array, tuple[Array, ...]]:
    rows, width = residual_TD.shape
    padded = pl.next_power_of_2(width)
    at_once = _rows_at_once(width, _FORWARD_ELEMENTS)
    row_block = pl.BlockSpec((at_once, padded), lambda i: (i, 0))
    vector = pl.BlockSpec((padded,), lambda i: (0,))
    sum_TD, normed_TD = pl.pallas_call(
        partial(_forward_kernel, settings, width, rows),
        grid=(pl.cdiv(rows, at_once),),
        in_specs=[pl.BlockSpec((4,), lambda i: (0,)), row_block, row_block, *[vector] * 3],
        out_specs=[row_block, row_block],
        out_shape=[jax.ShapeDtypeStruct(residual_TD.shape, residual_TD.dtype)] * 2,
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=settings.interpret,
        name="residual_norm_forward",
    )(key, residual_TD, update_TD, *vectors)
    return normed_TD, (sum_TD, vectors.scale_D, key)


def _normalise_backward(
    settings: _Settings, residuals: tuple[Array, ...], gradient_TD: Array
) -> tuple[Array, Array, _Vectors, None]:
    sum_TD, scale_D, key = residuals
    rows, width = sum_TD.shape
    padded = pl.next_power_of_2(width)
    programs = pl.cdiv(rows, _ROWS_OF_PROGRAM)
    row_block = pl.BlockSpec((_ROWS_OF_PROGRAM, padded), lambda i: (i, 0))
    vector = pl.BlockSpec((padded,), lambda i: (0,))
    partial_sum = pl.BlockSpec((None, padded), lambda i: (i, 0))
    residual_gradient_TD, update_gradient_TD, *sums_PD = pl.pallas_call(
        partial(_backward_kernel, settings, width, rows),
        grid=(programs,),
        in_specs=[pl.BlockSpec((4,), lambda i: (0,)), row_block, vector, row_block],
        out_specs=[row_block, row_block, *[partial_sum] * 3],
        out_shape=[
            *[jax.ShapeDtypeStruct(sum_TD.shape, sum_TD.dtype)] * 2,
            *[jax.ShapeDtypeStruct((programs, width), jnp.float32)] * 3,
        ],
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=settings.interpret,
        name="residual_norm_backward",
    )(key, sum_TD, scale_D, gradient_TD)
    vectors = _Vectors(*(jnp.sum(each_PD, axis=0) for each_PD in sums_PD))
    return residual_gradient_TD, update_gradient_TD, vectors, None


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _rows_at_once(width: int, elements: int) -> int:
    """How many rows hold so many elements: a power of 2, no more than a program has."""
    return min(max(1, elements // pl.next_power_of_2(width)), _ROWS_OF_PROGRAM)


class _Rows:
    """Some rows of hidden states, in a kernel: which parts are real, and what is kept of them."""

    def __init__(
        self, settings: _Settings, width: int, rows: int, key_ref: Any, first: Any, at_once: int
    ):
        self._settings = settings
        self._at_once = at_once
        self._width = width
        self._words = key_ref[0], key_ref[1]
        self._first_row = key_ref[2]
        self._row_R = first + jnp.arange(at_once)
        self._column_W = jnp.arange(pl.next_power_of_2(width))
        self.real_W = self._column_W < width
        self.real_RW = (self._row_R < rows)[:, None] & self.real_W[None, :]

    def load(self, ref: Any, first: Any) -> Array:
        """Rows of a block, in float32, with zeros for columns that are not real."""
        loaded_RW: Array = triton.load(
            ref.at[pl.ds(first, self._at_once), :], mask=self.real_RW, other=0.0
        ).astype(jnp.float32)
        return loaded_RW

    def drop(self, values_RW: Array) -> Array:
        """What dropout makes of them."""
        if self._settings.kept == STEPS:
            return values_RW
        row_R = self._first_row + self._row_R.astype(jnp.uint32)
        position_RW = (row_R * np.uint32(self._width))[:, None] + self._column_W.astype(jnp.uint32)
        keep_RW = is_kept(position_RW, *self._words, self._settings.kept)
        return jnp.where(keep_RW, values_RW * (STEPS / self._settings.kept), 0.0)

    def standardise(self, values_RW: Array) -> tuple[Array, Array]:
        """Less their mean and over their deviation, and one over the deviation [R, 1]."""
        # Two passes: E[x^2] - E[x]^2 loses digits when the mean is large against the deviation.
        centred_RW = jnp.where(self.real_W, values_RW - self.mean(values_RW), 0.0)
        inverse_R1 = lax.rsqrt(self.mean(centred_RW * centred_RW) + self._settings.epsilon)
        return centred_RW * inverse_R1, inverse_R1

    def mean(self, values_RW: Array) -> Array:
        """Over the columns: [R, 1]."""
        return (jnp.sum(values_RW, axis=1) / self._width)[:, None]


def _forward_kernel(
    settings: _Settings,
    width: int,
    rows: int,
    key_ref: Any,
    residual_ref: Any,
    update_ref: Any,
    update_bias_ref: Any,
    scale_ref: Any,
    bias_ref: Any,
    sum_ref: Any,
    normed_ref: Any,
) -> None:
    """The sum of a block of rows, which the backward pass reads, and its LayerNorm."""
    at_once = _rows_at_once(width, _FORWARD_ELEMENTS)
    block = _Rows(settings, width, rows, key_ref, pl.program_id(0) * at_once, at_once)
    update_bias_W, scale_W, bias_W = (
        triton.load(ref, mask=block.real_W, other=0.0)
        for ref in (update_bias_ref, scale_ref, bias_ref)
    )
    update_RW = block.drop(block.load(update_ref, 0) + update_bias_W[None, :])
    sum_RW = (block.load(residual_ref, 0) + update_RW).astype(sum_ref.dtype)
    triton.store(sum_ref, sum_RW, mask=block.real_RW)
    normed_RW, _ = block.standardise(sum_RW.astype(jnp.float32))
    normed_RW = normed_RW * scale_W[None, :] + bias_W[None, :]
    triton.store(normed_ref, normed_RW.astype(normed_ref.dtype), mask=block.real_RW)


def _backward_kernel(
    settings: _Settings,
    width: int,
    rows: int,
    key_ref: Any,
    sum_ref: Any,
    scale_ref: Any,
    gradient_ref: Any,
    residual_gradient_ref: Any,
    update_gradient_ref: Any,
    update_bias_gradient_ref: Any,
    scale_gradient_ref: Any,
    bias_gradient_ref: Any,
) -> None:
    """The gradients of some blocks of rows, and what they add to those of the vectors."""
    start = pl.program_id(0) * _ROWS_OF_PROGRAM
    at_once = _rows_at_once(width, _BACKWARD_ELEMENTS)
    padded = pl.next_power_of_2(width)
    real_W = jnp.arange(padded) < width
    scale_W = triton.load(scale_ref, mask=real_W, other=0.0)

    def add_rows(step: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        first = step * at_once
        block = _Rows(settings, width, rows, key_ref, start + first, at_once)
        normed_RW, inverse_R1 = block.standardise(block.load(sum_ref, first))
        gradient_RW = block.load(gradient_ref, first)
        scaled_RW = gradient_RW * scale_W[None, :]
        projection_R1 = block.mean(scaled_RW * normed_RW)
        sum_gradient_RW = inverse_R1 * (
            scaled_RW - block.mean(scaled_RW) - normed_RW * projection_R1
        )
        update_gradient_RW = block.drop(sum_gradient_RW)
        for ref, values_RW in (
            (residual_gradient_ref, sum_gradient_RW),
            (update_gradient_ref, update_gradient_RW),
        ):
            places = ref.at[pl.ds(first, at_once), :]
            triton.store(places, values_RW.astype(ref.dtype), mask=block.real_RW)
        parts_RW = (update_gradient_RW, gradient_RW * normed_RW, gradient_RW)
        return tuple(
            sum_W + jnp.sum(part_RW, axis=0) for sum_W, part_RW in zip(sums, parts_RW, strict=True)
        )

    zeros_W = jnp.zeros(padded, jnp.float32)
    sums = lax.fori_loop(0, _ROWS_OF_PROGRAM // at_once, add_rows, (zeros_W,) * 3)
    refs = (update_bias_gradient_ref, scale_gradient_ref, bias_gradient_ref)
    for ref, values_W in zip(refs, sums, strict=True):
        triton.store(ref, values_W, mask=real_W)
