"""A bias and the exact GELU in one kernel for NVIDIA GPUs.

XLA's program reads and writes no more, but is held up by arithmetic: forward it takes 40
instructions an element, and backward 80. Here one exponential gives the value and the gradient, and
multiplications and sums are one instruction, which neither XLA nor Triton in it makes of two.

Shapes: T rows (batch and length), F feed-forward width, R rows and C columns of a step, P programs.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from bert_jax.models.logical_axes import dividing_axes, on_each_device

Array = jax.Array

# Powers of 2: what is computed at a time, and the rows that a program of the backward pass computes
# one after the other.
_COLUMNS = 512
_FORWARD_ROWS = 8
_BACKWARD_ROWS = 4
_ROWS_OF_PROGRAM = 64
_WARPS = 4

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, where erfc(z) is exp(-z^2)
# times a polynomial of 1 / (1 + slope z) for z >= 0, but for 1.5e-7.
_SLOPE = 0.3275911
_COEFFICIENTS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def biased_gelu(projected_BLF: Array, bias_F: Array, *, interpret: bool = False) -> Array:
    """x * Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415) of inputs and their bias.

    Computed in float32, Phi to 1e-7. In a mesh, each device computes its rows and columns.

    Args:
      projected_BLF: bfloat16 or float32.
      bias_F: float32, added to them first.
      interpret: run the kernels step by step on whatever platform there is, slowly.

    Returns:
      Array [B, L, F] in the inputs' type.
    """

    def gelu_part(projected_BLF: Array, bias_F: Array) -> Array:
        shape = projected_BLF.shape
        return _gelu(projected_BLF.reshape(-1, shape[-1]), bias_F, interpret).reshape(shape)

    batch, _, width = projected_BLF.shape
    rows, columns = dividing_axes("batch", batch), dividing_axes("feed_forward", width)
    parts = PartitionSpec(rows, None, columns)
    mapped = on_each_device(gelu_part, (parts, PartitionSpec(columns)), parts)
    return mapped(projected_BLF, bias_F)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gelu(projected_TF: Array, bias_F: Array, interpret: bool) -> Array:
    """The same for rows."""
    return _gelu_forward(projected_TF, bias_F, interpret)[0]


def _gelu_forward(
    projected_TF: Array, bias_F: Array, interpret: bool
) -> tuple[Array, tuple[Array, Array]]:
    rows, width = projected_TF.shape
    block = pl.BlockSpec((_FORWARD_ROWS, _COLUMNS), lambda i, j: (i, j))
    inner_TF = pl.pallas_call(
        partial(_forward_kernel, _Arithmetic(interpret), rows, width),
        grid=(pl.cdiv(rows, _FORWARD_ROWS), pl.cdiv(width, _COLUMNS)),
        in_specs=[block, pl.BlockSpec((_COLUMNS,), lambda i, j: (j,))],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(projected_TF.shape, projected_TF.dtype),
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="gelu_forward",
    )(projected_TF, bias_F)
    return inner_TF, (projected_TF, bias_F)


def _gelu_backward(
    interpret: bool, residuals: tuple[Array, Array], gradient_TF: Array
) -> tuple[Array, Array]:
    projected_TF, bias_F = residuals
    rows, width = projected_TF.shape
    programs = pl.cdiv(rows, _ROWS_OF_PROGRAM)
    block = pl.BlockSpec((_ROWS_OF_PROGRAM, _COLUMNS), lambda i, j: (i, j))
    projected_gradient_TF, sums_PF = pl.pallas_call(
        partial(_backward_kernel, _Arithmetic(interpret), rows, width),
        grid=(programs, pl.cdiv(width, _COLUMNS)),
        in_specs=[block, pl.BlockSpec((_COLUMNS,), lambda i, j: (j,)), block],
        out_specs=[block, pl.BlockSpec((None, _COLUMNS), lambda i, j: (i, j))],
        out_shape=[
            jax.ShapeDtypeStruct(projected_TF.shape, projected_TF.dtype),
            jax.ShapeDtypeStruct((programs, width), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="gelu_backward",
    )(projected_TF, bias_F, gradient_TF)
    return projected_gradient_TF, jnp.sum(sums_PF, axis=0)


_gelu.defvjp(_gelu_forward, _gelu_backward)


class _Arithmetic(NamedTuple):
    """Single instructions of the device; where kernels are interpreted, what they compute."""

    interpret: bool

    def multiply_add(self, factor: Array, other: Array | float, summand: Array | float) -> Array:
        if self.interpret:
            return factor * other + summand
        return self._instruction("fma.rn.f32", factor, other, summand)

    def exp2(self, values: Array) -> Array:
        return (
            jnp.exp2(values) if self.interpret else self._instruction("ex2.approx.ftz.f32", values)
        )

    def reciprocal(self, values: Array) -> Array:
        return 1.0 / values if self.interpret else self._instruction("rcp.approx.ftz.f32", values)

    def _instruction(self, name: str, first: Array, *others: Array | float) -> Array:
        arguments = [first, *(jnp.broadcast_to(other, first.shape) for other in others)]
        places = ", ".join(f"${number}" for number in range(len(arguments) + 1))
        (result,) = triton.elementwise_inline_asm(
            f"{name} {places};",
            args=arguments,
            constraints=",".join(["=f", *"f" * len(arguments)]),
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(first.shape, first.dtype)],
        )
        return result

    def phi(self, values: Array) -> tuple[Array, Array]:
        """The normal distribution's Phi(x), and exp(-x^2 / 2)."""
        exponential = self.exp2(values * values * (-0.5 * math.log2(math.e)))
        slope = _SLOPE * math.sqrt(0.5)
        fraction = self.reciprocal(self.multiply_add(jnp.abs(values), slope, 1.0))
        *others, last = (0.5 * coefficient for coefficient in _COEFFICIENTS)
        polynomial = jnp.full_like(values, last)
        for coefficient in reversed(others):
            polynomial = self.multiply_add(polynomial, fraction, coefficient)
        tail = polynomial * (fraction * exponential)
        return jnp.where(values > 0.0, 1.0 - tail, tail), exponential


def _forward_kernel(
    arithmetic: _Arithmetic,
    rows: int,
    width: int,
    projected_ref: Any,
    bias_ref: Any,
    inner_ref: Any,
) -> None:
    """GELU of a block."""
    real_C = pl.program_id(1) * _COLUMNS + jnp.arange(_COLUMNS) < width
    real_R = pl.program_id(0) * _FORWARD_ROWS + jnp.arange(_FORWARD_ROWS) < rows
    real_RC = real_R[:, None] & real_C[None, :]
    bias_C = triton.load(bias_ref, mask=real_C, other=0.0)
    projected_RC = triton.load(projected_ref, mask=real_RC, other=0.0)
    values_RC = projected_RC.astype(jnp.float32) + bias_C[None, :]
    phi_RC, _ = arithmetic.phi(values_RC)
    triton.store(inner_ref, (values_RC * phi_RC).astype(inner_ref.dtype), mask=real_RC)


def _backward_kernel(
    arithmetic: _Arithmetic,
    rows: int,
    width: int,
    projected_ref: Any,
    bias_ref: Any,
    gradient_ref: Any,
    projected_gradient_ref: Any,
    bias_gradient_ref: Any,
) -> None:
    """The gradients of some blocks of rows, and their sum."""
    start = pl.program_id(0) * _ROWS_OF_PROGRAM
    real_C = pl.program_id(1) * _COLUMNS + jnp.arange(_COLUMNS) < width
    bias_C = triton.load(bias_ref, mask=real_C, other=0.0)

    def add_rows(step: Any, sum_RC: Array) -> Array:
        first = step * _BACKWARD_ROWS
        real_R = start + first + jnp.arange(_BACKWARD_ROWS) < rows
        real_RC = real_R[:, None] & real_C[None, :]
        places = pl.ds(first, _BACKWARD_ROWS), slice(None)
        projected_RC, gradient_RC = (
            triton.load(ref.at[places], mask=real_RC, other=0.0).astype(jnp.float32)
            for ref in (projected_ref, gradient_ref)
        )
        values_RC = projected_RC + bias_C[None, :]
        phi_RC, exponential_RC = arithmetic.phi(values_RC)
        density_RC = exponential_RC * (1.0 / math.sqrt(2.0 * math.pi))
        gradient_RC = gradient_RC * arithmetic.multiply_add(values_RC, density_RC, phi_RC)
        stored_RC = gradient_RC.astype(projected_gradient_ref.dtype)
        triton.store(projected_gradient_ref.at[places], stored_RC, mask=real_RC)
        return sum_RC + gradient_RC

    zeros_RC = jnp.zeros((_BACKWARD_ROWS, _COLUMNS), jnp.float32)
    sum_RC = lax.fori_loop(0, _ROWS_OF_PROGRAM // _BACKWARD_ROWS, add_rows, zeros_RC)
    triton.store(bias_gradient_ref, jnp.sum(sum_RC, axis=0), mask=real_C)
