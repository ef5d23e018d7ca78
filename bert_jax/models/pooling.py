"""Embeddings of sentences: one vector from an encoder's hidden states.

Shapes: B batch, L length, D model width.
"""

import jax
import jax.numpy as jnp

from bert_jax.models.description import Pooling
from bert_jax.models.heads import mean_pool

Array = jax.Array

# The floor is torch.nn.functional.normalize's.
_SMALLEST_NORM = 1e-12


def sentence_embeddings(
    hidden_BLD: Array, lengths_B: Array, pooling: Pooling, *, normalize: bool
) -> Array:
    """Pools hidden states.

    Args:
      hidden_BLD: the encoder's output.
      lengths_B: int32 real tokens of each row, a prefix.
      pooling: how.
      normalize: whether the result is scaled to length 1.

    Returns:
      float32 [B, D].
    """
    match pooling:
        case Pooling.MEAN:
            pooled_BD = mean_pool(hidden_BLD, lengths_B)
        case Pooling.CLS:
            pooled_BD = hidden_BLD[:, 0].astype(jnp.float32)
    return unit_length(pooled_BD) if normalize else pooled_BD


def unit_length(vectors_BD: Array) -> Array:
    """Scales vectors to length 1; zeros stay zeros, and have a gradient of zeros."""
    squares_B1 = jnp.sum(jnp.square(vectors_BD), axis=-1, keepdims=True)
    # The root's own derivative at zero is infinite.
    positive_B1 = jnp.maximum(squares_B1, _SMALLEST_NORM**2)
    return vectors_BD / jnp.sqrt(positive_B1)
