"""Embeddings of sentences: one vector from an encoder's hidden states.

Shapes: B batch, L length, Q sequences of a row, D model width. `lengths` are [B], or [B, Q] for
rows of several sequences.
"""

import jax
import jax.numpy as jnp

from bert_jax.models.description import Pooling
from bert_jax.models.heads import mean_pool
from bert_jax.models.packing import first_states

Array = jax.Array

# The floor is torch.nn.functional.normalize's.
_SMALLEST_NORM = 1e-12


def sentence_embeddings(
    hidden_BLD: Array, lengths: Array, pooling: Pooling, *, normalize: bool
) -> Array:
    """Pools hidden states.

    Args:
      hidden_BLD: the encoder's output.
      lengths: int32 real tokens of each row, a prefix, or of each sequence of a row.
      pooling: how.
      normalize: whether the result is scaled to length 1.

    Returns:
      float32 [B, D], or [B, Q, D] of rows of several sequences.
    """
    match pooling:
        case Pooling.MEAN:
            pooled = mean_pool(hidden_BLD, lengths)
        case Pooling.CLS:
            pooled = first_states(hidden_BLD, lengths).astype(jnp.float32)
    return unit_length(pooled) if normalize else pooled


def unit_length(vectors: Array) -> Array:
    """Scales vectors [..., D] to length 1; zeros stay zeros, and have a gradient of zeros."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    # The root's own derivative at zero is infinite.
    return vectors / jnp.sqrt(jnp.maximum(squares, _SMALLEST_NORM**2))
