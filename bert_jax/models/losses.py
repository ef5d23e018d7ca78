"""Cross-entropy and accuracy as sums over weights, to be divided once over the global batch.

Shapes: `...` any leading axes, V classes (the vocabulary, with its padding, or labels).
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def cross_entropy_sum(logits: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted sum of -log softmax(logits)[label].

    The sum of the parts of a batch is the sum of the batch, so accumulated gradients and metrics
    equal those of the whole. Logits of vocabulary padding (`heads.PADDING_LOGIT`) take no part:
    their probability is exactly zero.

    Args:
      logits: [..., V], any floating type; computed in float32.
      labels: int [...], in [0, V) wherever the weight is not zero, anything elsewhere.
      weights: [...].

    Returns:
      Two float32 scalars: the sum of weighted losses and the sum of the weights.
    """
    weights = weights.astype(jnp.float32)
    # Everything is relative to the largest logit, so that no digits are lost on their common size.
    logits = logits.astype(jnp.float32)
    logits -= lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_normalizer = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    # Not a gather: the gradient of a gather is a scatter into a [..., V] array of zeros, where this
    # selection fuses with the softmax in both directions, and divides with a sharded vocabulary.
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    label_logits = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.sum(weights * (log_normalizer - label_logits)), jnp.sum(weights)


def correct_sum(logits: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted count of the elements whose highest logit is the label's.

    Of equal logits the first counts as the highest, so a constant model is not always right.

    Args:
      logits: [..., V].
      labels: int [...].
      weights: [...].

    Returns:
      Two float32 scalars: the sum of the weights of correct elements and of all weights.
    """
    weights = weights.astype(jnp.float32)
    predictions = jnp.argmax(logits, axis=-1)
    return jnp.sum(weights * (predictions == labels)), jnp.sum(weights)

