"""The parts that every block of the model is made of: projection, LayerNorm, GELU, dropout.

Shapes: B batch, L length, D model width. `...` stands for any leading axes.

Each parameter carries logical axis names (`flax.linen.with_logical_partitioning`), which the
training code maps to mesh axes.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

Array = jax.Array


class Projection(nn.Module):
    """A dense layer between tensors: contracts trailing axes of the input with a kernel, adds a bias.

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

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [..., *shape[:contracted]] to [..., *shape[contracted:]] in `dtype`."""
        kernel_init = nn.with_logical_partitioning(
            nn.initializers.truncated_normal(self.stddev), self.axes
        )
        bias_init = nn.with_logical_partitioning(
            nn.initializers.zeros_init(), self.axes[self.contracted :]
        )
        kernel = self.param("kernel", kernel_init, self.shape, jnp.float32)
        bias = self.param("bias", bias_init, self.shape[self.contracted :], jnp.float32)
        outputs = jnp.tensordot(
            inputs.astype(self.dtype), kernel.astype(self.dtype), axes=self.contracted
        )
        return outputs + bias.astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al., arXiv:1607.06450), computed in float32.

    Attributes:
      epsilon: added to the variance.
      dtype: of the output.
    """

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs_BLD: Array) -> Array:
        """Maps [..., D] to [..., D] in `dtype`."""
        width = inputs_BLD.shape[-1:]
        scale_D = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones_init(), ("width",)),
            width,
            jnp.float32,
        )
        bias_D = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros_init(), ("width",)),
            width,
            jnp.float32,
        )
        inputs_BLD = inputs_BLD.astype(jnp.float32)
        # Two passes: E[x^2] - E[x]^2 loses digits when the mean is large against the deviation.
        centred_BLD = inputs_BLD - jnp.mean(inputs_BLD, axis=-1, keepdims=True)
        variance_BL1 = jnp.mean(jnp.square(centred_BLD), axis=-1, keepdims=True)
        normed_BLD = centred_BLD * lax.rsqrt(variance_BL1 + self.epsilon)
        return (normed_BLD * scale_D + bias_D).astype(self.dtype)


def gelu(inputs: Array) -> Array:
    """The exact GELU, x * Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415), as BERT has it."""
    return jax.nn.gelu(inputs, approximate=False)


# 16 random bits an element: half the cost of 32, and the kept share is right to 2**-17. 8 bits
# would keep 0.8984 where 0.9 is asked for.
_DROPOUT_BITS = 16


def dropout(inputs: Array, rate: float, key: Array) -> Array:
    """Zeroes a random share of the elements and scales the others up (Srivastava et al., 2014).

    Args:
      inputs: any shape, floating point.
      rate: dropped share, in [0, 1), a Python number. It is rounded to a multiple of 2**-16, and
        kept elements are scaled by the inverse of the exact kept share, so the expectation of the
        output is the input.
      key: a typed PRNG key; its implementation (threefry2x32, rbg, unsafe_rbg) is the caller's.

    Returns:
      An array like `inputs`.
    """
    steps = 2**_DROPOUT_BITS
    kept = steps - round(rate * steps)
    if kept == steps:
        return inputs
    bits = jax.random.bits(key, inputs.shape, jnp.uint16)
    return jnp.where(bits < kept, inputs * (steps / kept), 0).astype(inputs.dtype)


class Dropout(nn.Module):
    """`dropout` with a key from the "dropout" stream; the identity when deterministic or at rate 0."""

    rate: float

    @nn.compact
    def __call__(self, inputs: Array, *, deterministic: bool) -> Array:
        """Maps any shape to the same shape and dtype."""
        if deterministic or self.rate == 0.0:
            return inputs
        return dropout(inputs, self.rate, self.make_rng("dropout"))
