"""The decoder of masked tokens, whole or in chunks of the vocabulary.

Shapes: B batch, M masked positions, D model width, V vocabulary (padded), C chunks, W tokens of a
chunk.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax import lax

from bert_jax.models.layers import contract

Array = jax.Array

# The logit of vocabulary padding: its softmax is exactly zero, its gradient too.
PADDING_LOGIT = -1e9


class Decoder(NamedTuple):
    """A linear layer from hidden states to tokens.

    Attributes:
      table_VD: float32 weights, the word embeddings.
      bias_V: float32.
      vocabulary_size: how many tokens are real; the others are padding.
    """

    table_VD: Array
    bias_V: Array
    vocabulary_size: int


def decode(hidden_BMD: Array, decoder: Decoder, token_ids_V: Array) -> Array:
    """Scores tokens.

    Args:
      hidden_BMD: transformed hidden states, in the compute type.
      decoder: the layer, or rows of it.
      token_ids_V: int32, the ids of its rows.

    Returns:
      float32 logits [B, M, V]; those of the vocabulary's padding are `PADDING_LOGIT`.
    """
    table_VD = decoder.table_VD.astype(hidden_BMD.dtype)
    logits_BMV = contract(hidden_BMD, table_VD.T, 1, jnp.dtype("float32"))
    logits_BMV += _repeat(decoder.bias_V, logits_BMV.shape[:-1], hidden_BMD.dtype)
    return jnp.where(token_ids_V < decoder.vocabulary_size, logits_BMV, PADDING_LOGIT)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _repeat(bias_V: Array, rows: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """The bias for so many rows: [*rows, V].

    Its gradient is a product with ones; on the CPU the sum over rows that broadcasting would give
    takes ten times as long. And it is made of the logits' gradient in the compute type, which the
    gradients of the weights and the hidden states are made of too: on a GPU those of BERT-base at
    length 128 would otherwise be written twice.
    """
    return jnp.broadcast_to(bias_V, (*rows, *bias_V.shape))


def _repeat_forward(bias_V: Array, rows: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, None]:
    return _repeat(bias_V, rows, dtype), None


def _repeat_backward(
    rows: tuple[int, ...], dtype: jnp.dtype, _: None, gradient: Array
) -> tuple[Array]:
    gradient_RV = lax.optimization_barrier(gradient.astype(dtype)).reshape(math.prod(rows), -1)
    # cuBLAS multiplies no single row of bfloat16, for which all would be written in float32 first.
    copies = 8 if dtype == jnp.bfloat16 else 1
    ones = jnp.ones((copies, len(gradient_RV)), dtype)
    return (jnp.dot(ones, gradient_RV, preferred_element_type=jnp.float32)[0],)


_repeat.defvjp(_repeat_forward, _repeat_backward)


def score_in_chunks(
    hidden_BMD: Array, decoder: Decoder, labels_BM: Array, chunks: int
) -> tuple[Array, Array]:
    """Scores the labels, with the logits of one chunk of the vocabulary in memory at a time.

    The backward pass computes a chunk's logits again, so that the decoder costs a third more. Under
    FSDP a chunk of the table is gathered when it is needed, as a layer's kernels are.

    Args:
      hidden_BMD: transformed hidden states, in the compute type.
      decoder: the layer; its rows are a multiple of `chunks`.
      labels_BM: int32 in [0, vocabulary_size) wherever the result is used.
      chunks: how many.

    Returns:
      What `cross_entropy` and `is_correct` make of the logits: float32 [B, M] and bool [B, M].
    """
    rows = len(decoder.bias_V) // chunks
    # Chunk c has the tokens c, c + C, c + 2C, ...: where a mesh splits the vocabulary, a part of
    # each device's.
    table_CWD = decoder.table_VD.reshape(rows, chunks, -1).swapaxes(0, 1)
    bias_CW = decoder.bias_V.reshape(rows, chunks).T

    # In float32, so that the gradients of the chunks are summed up in it.
    wide_BMD = hidden_BMD.astype(jnp.float32)

    # A loop keeps the passes apart by itself.
    @partial(jax.checkpoint, prevent_cse=False)
    def score_chunk(table_WD: Array, bias_W: Array, number: Array) -> tuple[Array, ...]:
        # Cast first, so that no more bytes are gathered than the product reads.
        table_WD = table_WD.astype(hidden_BMD.dtype)
        table_WD = with_logical_constraint(table_WD, ("vocabulary", None))
        ids_W = number + chunks * jnp.arange(rows)
        chunk = Decoder(table_WD, bias_W, decoder.vocabulary_size)
        logits_BMW = decode(wide_BMD.astype(hidden_BMD.dtype), chunk, ids_W)
        fixed_BMW = lax.stop_gradient(logits_BMW)
        highest_BM = jnp.max(fixed_BMW, axis=-1)
        # Relative to the highest logit, so that no digits are lost on their common size.
        relative_BMW = logits_BMW - highest_BM[..., None]
        normalizer_BM = jnp.log(jnp.sum(jnp.exp(relative_BMW), axis=-1))
        # Not by indexing, whose gradient would be a scatter.
        is_label_BMW = ids_W == labels_BM[..., None]
        label_BM = jnp.sum(relative_BMW, axis=-1, where=is_label_BMW)
        before_BMW = ids_W < labels_BM[..., None]
        highest_before_BM = jnp.max(fixed_BMW, axis=-1, where=before_BMW, initial=-jnp.inf)
        return normalizer_BM, highest_BM, label_BM, jnp.any(is_label_BMW, -1), highest_before_BM

    normalizer_CBM, highest_CBM, label_CBM, has_label_CBM, highest_before_CBM = lax.scan(
        lambda _, chunk: (None, score_chunk(*chunk)),
        None,
        (table_CWD, bias_CW, jnp.arange(chunks)),
    )[1]
    highest_BM = jnp.max(highest_CBM, axis=0)
    offset_CBM = highest_CBM - highest_BM
    normalizer_BM = jax.nn.logsumexp(normalizer_CBM + offset_CBM, axis=0)
    label_BM = jnp.sum(label_CBM + offset_CBM, axis=0, where=has_label_CBM)
    before_BM = jnp.max(highest_before_CBM, axis=0) - highest_BM
    return normalizer_BM - label_BM, (label_BM >= 0) & (label_BM > before_BM)
