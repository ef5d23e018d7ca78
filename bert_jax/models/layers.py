"""The parts that every block of the model is made of: projection, LayerNorm, GELU, dropout.

Shapes: B batch, L length, D model width. `...` stands for any leading axes.

Each parameter carries logical axis names (`flax.linen.with_logical_partitioning`), which the
training code maps to mesh axes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

Array = jax.Array

STEPS = 2**32  # into which `dropout` divides chance


def parameter(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
) -> Array:
    """Declares a float32 parameter of `module` that carries a logical name for each axis."""
    named_init = nn.with_logical_partitioning(init, axes)
    # flax gives the array itself, where the types say that it gives the box with the names.
    return cast(Array, module.param(name, named_init, shape, jnp.float32))


class Projection(nn.Module):
    """A dense layer between tensors: contracts trailing input axes with a kernel, adds a bias.

    Attributes:
      shape: the kernel's shape, contracted axes first.
      axes: the logical name of each kernel axis, None for one that no mesh axis divides.
      stddev: of the truncated normal (cut at two deviations, as in BERT) that the kernel starts
        from; the bias starts at zero.
      dtype: in which the product is computed. Parameters are float32.
      contracted: how many leading axes of the kernel are contracted.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stddev: float
    dtype: jnp.dtype
    contracted: int = 1

    def setup(self) -> None:
        outer = slice(self.contracted, None)
        kernel_init = nn.initializers.truncated_normal(self.stddev)
        zeros = nn.initializers.zeros_init()
        self.kernel = parameter(self, "kernel", kernel_init, self.shape, self.axes)
        self.bias = parameter(self, "bias", zeros, self.shape[outer], self.axes[outer])

    def __call__(self, inputs: Array, bias: Array | None = None) -> Array:
        """Maps [..., *shape[:contracted]] to [..., *shape[contracted:]] in `dtype`.

        Args:
          inputs: any floating point.
          bias: float32, instead of the parameter.
        """
        return self._project(inputs, self.kernel, self.bias if bias is None else bias)

    def without_bias(self, inputs: Array) -> Array:
        """The same but for the bias, which is `bias`, in float32."""
        return self._product(inputs, self.kernel)

    def part(self, number: int, inputs: Array, *, biased: bool = True) -> Array:
        """The map of one entry of the first kernel axis that is not contracted, biased or not."""
        kernel = lax.index_in_dim(self.kernel, number, self.contracted, keepdims=False)
        if not biased:
            return self._product(inputs, kernel)
        return self._project(inputs, kernel, self.bias[number])

    def bias_after(self, constant: Array) -> Array:
        """The bias of inputs to which float32 [*shape[:contracted]] is still to be added."""
        highest = lax.Precision.HIGHEST
        product = jnp.tensordot(constant, self.kernel, self.contracted, precision=highest)
        return self.bias + product

    def _project(self, inputs: Array, kernel: Array, bias: Array) -> Array:
        # In float32, so that the bias's gradient, a sum over all tokens, is.
        outputs = self._product(inputs, kernel).astype(jnp.float32) + bias
        return outputs.astype(self.dtype)

    def _product(self, inputs: Array, kernel: Array) -> Array:
        return contract(inputs.astype(self.dtype), kernel.astype(self.dtype), self.contracted)


class Update(NamedTuple):
    """What a block adds to the hidden states.

    Attributes:
      hidden_BLD: in the compute type.
      bias_D: float32, what is still to be added to them; None if it was.
    """

    hidden_BLD: Array
    bias_D: Array | None = None


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def contract(inputs: Array, kernel: Array, axes: int, dtype: jnp.dtype | None = None) -> Array:
    """`jnp.tensordot(inputs, kernel, axes)` whose gradient is cheaper on the CPU.

    XLA's CPU compiler transposes the first operand of the product that gives the kernel's gradient.
    JAX's own rule always puts the outputs' gradient there, and what computed it is computed again
    in the transposed order; in a feed-forward block these strided writes took as long as the
    product. Here the gradient stands in memory first, and the smaller operand is transposed.

    Args:
      inputs: [..., *contracted].
      kernel: [*contracted, *outer], of the same type.
      axes: how many axes are contracted.
      dtype: of the result; by default that of the inputs. Gradients are in the inputs' type, with
        their products summed up in float32.

    Returns:
      Array [..., *outer].
    """
    return jnp.tensordot(inputs, kernel, axes, preferred_element_type=dtype)


def _contract_forward(
    inputs: Array, kernel: Array, axes: int, dtype: jnp.dtype | None
) -> tuple[Array, tuple[Array, Array]]:
    # Not by `contract` itself: rematerialisation has to see that this is a product.
    outputs = jnp.tensordot(inputs, kernel, axes, preferred_element_type=dtype)
    return outputs, (inputs, kernel)


def _contract_backward(
    axes: int, dtype: jnp.dtype | None, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    inputs, kernel = residuals
    gradient = lax.optimization_barrier(gradient.astype(inputs.dtype))
    rows, outer = inputs.ndim - axes, kernel.ndim - axes
    columns = (range(rows, gradient.ndim), range(axes, kernel.ndim))
    inputs_gradient = lax.dot_general(gradient, kernel, (columns, ((), ())))
    rows_of_both = ((range(rows), range(rows)), ((), ()))
    swap = gradient.size < inputs.size
    operands = (gradient, inputs) if swap else (inputs, gradient)
    # Without the barrier XLA would fold a transposition that follows into the product.
    kernel_gradient = lax.optimization_barrier(lax.dot_general(*operands, rows_of_both))
    if swap:
        order = (*range(outer, kernel.ndim), *range(outer))
        kernel_gradient = lax.transpose(kernel_gradient, order)
    return inputs_gradient, kernel_gradient


contract.defvjp(_contract_forward, _contract_backward)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al., arXiv:1607.06450), computed in float32.

    Attributes:
      epsilon: added to the variance.
      dtype: of the output.
    """

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs_BLD: Array, normalise: Callable[..., Array] | None = None) -> Array:
        """Maps [..., D] to [..., D] in `dtype`.

        Args:
          inputs_BLD: what is normalised.
          normalise: what does it, called with the inputs, scale, bias and epsilon; by default
            `layer_norm`.
        """
        width = inputs_BLD.shape[-1:]
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale_D = parameter(self, "scale", ones, width, ("width",))
        bias_D = parameter(self, "bias", zeros, width, ("width",))
        normed_BLD = (normalise or layer_norm)(inputs_BLD, scale_D, bias_D, self.epsilon)
        return normed_BLD.astype(self.dtype)


def layer_norm(inputs_BLD: Array, scale_D: Array, bias_D: Array, epsilon: float) -> Array:
    """LayerNorm's formula: float32 [..., D]."""
    inputs_BLD = inputs_BLD.astype(jnp.float32)
    # Two passes: E[x^2] - E[x]^2 loses digits when the mean is large against the deviation.
    centred_BLD = inputs_BLD - jnp.mean(inputs_BLD, axis=-1, keepdims=True)
    variance_BL1 = jnp.mean(jnp.square(centred_BLD), axis=-1, keepdims=True)
    normed_BLD = centred_BLD * lax.rsqrt(variance_BL1 + epsilon)
    return normed_BLD * scale_D + bias_D


def gelu(inputs: Array) -> Array:
    """The exact GELU, x * Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415), as BERT has it.

    Phi is taken from erf in float32, as PyTorch takes it; `jax.nn.gelu` takes it from erfc, which
    costs three times as much on the CPU and differs by less than float32 can tell beside 1.
    """
    wide = inputs.astype(jnp.float32)
    return (0.5 * wide * (1.0 + lax.erf(wide * math.sqrt(0.5)))).astype(inputs.dtype)


def dropout(inputs: Array, rate: float, key: Array) -> Array:
    """Zeroes a random share of the elements and scales the others up (Srivastava et al., 2014).

    Args:
      inputs: any shape, floating point; in bfloat16 finite.
      rate: dropped share, in [0, 1), a Python number. It is rounded to a multiple of 2**-32, and
        kept elements are scaled by the inverse of the exact kept share, so the expectation of the
        output is the input; in bfloat16 but for the scale's own rounding, 1.6 thousandths at 0.1.
      key: a typed PRNG key of any implementation. Two words are drawn from it, so that its speed
        does not matter.

    Returns:
      An array like `inputs`.
    """
    kept, (first, second) = draw(rate, key)
    if kept == STEPS:
        return inputs
    keep = is_kept(_positions(inputs.shape), first, second, kept)
    # In float32 the selection compiles everywhere, and a CPU needs less memory for it.
    if inputs.dtype == jnp.bfloat16:
        return _scale_where(keep, inputs, STEPS / kept)
    return jnp.where(keep, inputs * (STEPS / kept), 0).astype(inputs.dtype)


def draw(rate: float, key: Array | None) -> tuple[int, Array]:
    """What dropout of a share is made of.

    Returns:
      How many of `STEPS` random numbers keep an element, and two random words, uint32 [2]. Without
      a key, all of them, and zeros.
    """
    if key is None:
        return STEPS, jnp.zeros(2, jnp.uint32)
    return STEPS - round(rate * STEPS), jax.random.bits(key, (2,), jnp.uint32)


def is_kept(position: Array, first: Array, second: Array, kept: int) -> Array:
    """Whether `dropout` keeps elements: by a hash of their positions, keyed by two words.

    On a CPU jax.random's generators take a fifth of a training step to fill the masks. This is
    elementwise, so it fuses with the selection that follows and never stands in memory, and a
    sharded array computes only its own part, with the same bits on any mesh.

    It is much of what our kernels for GPUs compute, so that it is no longer than it must be: Weyl's
    sequence and two rounds like those of C. Wellons' "lowbias32" (hash-prospector), without a last
    step, which would change low bits, where the highest decide. The first shift is one by which no
    distance between positions is correlated, of millions. The first word of a key shifts the
    sequence and the second changes it, so that masks of keys that share the second are alike.

    Args:
      position: uint32 [...], counted in row-major order.
      first, second: uint32, the key.
      kept: what `draw` gives.
    """
    bits = position * np.uint32(0x9E3779B1) + first
    bits = (bits ^ (bits >> 13)) * np.uint32(0x21F0AAAD)
    bits = (bits ^ (bits >> 15) ^ second) * np.uint32(0x735A2D97)
    return bits < np.uint32(kept)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scale_where(keep: Array, inputs: Array, scale: float) -> Array:
    """`inputs` times `scale` where `keep` is true, and zero elsewhere.

    A product with numbers in `inputs`' type, because a selection from a softmax in bfloat16, or a
    product in float32, overflows the stack of the compiler for TPU v6e (at length 512, libtpu
    0.0.42). The gradient is written out, because JAX would keep those numbers for it, which have
    twice the bytes of `keep`.
    """
    return inputs * jnp.where(keep, scale, 0.0).astype(inputs.dtype)


def _scale_where_forward(keep: Array, inputs: Array, scale: float) -> tuple[Array, Array]:
    return _scale_where(keep, inputs, scale), keep


def _scale_where_backward(scale: float, keep: Array, gradient: Array) -> tuple[None, Array]:
    return None, _scale_where(keep, gradient, scale)


_scale_where.defvjp(_scale_where_forward, _scale_where_backward)


def _positions(shape: tuple[int, ...]) -> Array:
    """Counts elements in row-major order: uint32 [*shape].

    Beyond 2**32 elements positions repeat, and with them the mask.
    """
    position = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position += lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride % STEPS)
        stride *= shape[axis]
    return position


class Dropout(nn.Module):
    """`dropout` with a key of the "dropout" stream; nothing when deterministic or at rate 0."""

    rate: float

    def __call__(self, inputs: Array, *, deterministic: bool) -> Array:
        """Maps any shape to the same shape and dtype."""
        key = self.key(deterministic=deterministic)
        return inputs if key is None else dropout(inputs, self.rate, key)

    def key(self, *, deterministic: bool) -> Array | None:
        """A new key, or None where nothing is dropped."""
        return None if deterministic or self.rate == 0.0 else self.make_rng("dropout")
