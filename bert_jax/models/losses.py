"""Cross-entropy and accuracy as sums over weights, to be divided once over the global batch.

Shapes: `...` any leading axes, V classes (the vocabulary, with its padding, or labels).
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy_sum(logits: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted sum of -log softmax(logits)[label].

    The sum of the parts of a batch is the sum of the batch, so accumulated gradients and metrics
    equal those of the whole. Logits of vocabulary padding (`decoder.PADDING_LOGIT`) take no part:
    their probability is exactly zero.

    Args:
      logits: [..., V], any floating type; computed in float32.
      labels: int [...], in [0, V) wherever the weight is not zero, anything elsewhere.
      weights: [...].

    Returns:
      Two float32 scalars: the sum of weighted losses and the sum of the weights.
    """
    return weighted_sum(cross_entropy(logits, labels), weights)


def weighted_sum(values: Array, weights: Array) -> tuple[Array, Array]:
    """The sum of values [...] by weights [...] and that of the weights: two float32 scalars."""
    weights = weights.astype(jnp.float32)
    return jnp.sum(weights * values), jnp.sum(weights)


@jax.custom_vjp
def cross_entropy(logits: Array, labels: Array) -> Array:
    """What `cross_entropy_sum` sums up: float32 [...]."""
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(logits: Array, labels: Array) -> tuple[Array, tuple[Array, ...]]:
    # Everything is relative to the largest logit, so that no digits are lost on their common size.
    highest = jnp.max(logits, axis=-1, keepdims=True).astype(jnp.float32)
    exponentials = jnp.exp(logits.astype(jnp.float32) - highest)
    log_normalizer = jnp.log(jnp.sum(exponentials, axis=-1, keepdims=True))
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")
    losses = log_normalizer - (label_logits.astype(jnp.float32) - highest)
    return losses[..., 0], (logits, labels, highest + log_normalizer)


def _cross_entropy_backward(residuals: tuple[Array, ...], cotangents: Array) -> tuple[Array, None]:
    # Written out, because the derivative of taking the label's logit would be a scatter into an
    # array of zeros as large as the logits; this is elementwise.
    logits, labels, log_normalizer = residuals
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_normalizer)
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    gradient = (probabilities - is_label) * cotangents[..., None]
    return gradient.astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


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
    return weighted_sum(is_correct(logits, labels), weights)


def is_correct(logits: Array, labels: Array) -> Array:
    """What `correct_sum` sums up: bool [...]."""
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")
    # Not by argmax, which the CPU searches one number at a time.
    before = jnp.arange(logits.shape[-1]) < labels[..., None]
    highest_before = jnp.max(logits, axis=-1, keepdims=True, where=before, initial=-jnp.inf)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    correct: Array = ((label_logits >= highest) & (label_logits > highest_before))[..., 0]
    return correct
