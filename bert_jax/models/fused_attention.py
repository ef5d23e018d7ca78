"""Attention in one kernel of others, which never writes its scores to memory: splash, and cuDNN's.

Both give what `attention.dot_product_attention` gives, at every query. Neither can drop attention
probabilities, which our own can (`triton_attention.py`).

Shapes: B batch, L length (of queries), S length (of keys and values), Q sequences of a row, N
heads, K head width. `lengths` are [B], or [B, Q] for rows of several sequences.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import PartitionSpec

from bert_jax.errors import UserError
from bert_jax.models.logical_axes import dividing_axes, on_each_device
from bert_jax.models.packing import is_packed, sequence_numbers

Array = jax.Array

# The kernel works on blocks of a multiple of a TPU's lanes. BERT's lengths are one block each.
_LANES = 128
_LARGEST_BLOCK = 512


def splash_attention(
    query_BLNK: Array,
    key_BSNK: Array,
    value_BSNK: Array,
    lengths: Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    interpret: bool = False,
) -> Array:
    """JAX's Pallas kernel for TPUs, a kind of FlashAttention (Dao et al., arXiv:2205.14135).

    Padding is told to the kernel by segments: queries attend to keys of their own segment, which is
    that of the real keys, or in a row of several sequences that of their sequence. Lengths are
    padded to a multiple of 128 inside.

    The partitioner of `jit` cannot look into a kernel. In a mesh, each device computes the batch
    and the heads that the logical axis rules give it; an axis that the mesh does not divide is
    computed whole everywhere.

    Args:
      query_BLNK: queries, float32 or bfloat16.
      key_BSNK: keys.
      value_BSNK: values.
      lengths: int32, how many leading keys are real. With length 0 the output is finite and means
        nothing. Or the lengths of the sequences of each row, for as many queries as keys.
      dropout_rate: must be left out, and so must
      dropout_key: this.
      interpret: run the kernel step by step on whatever platform there is, slowly.

    Returns:
      Array [B, L, N, K] in the queries' type.

    Raises:
      UserError: there is a key for dropout.
    """
    _refuse_dropout("splash", dropout_rate, dropout_key)

    def attend(query_BLNK: Array, key_BSNK: Array, value_BSNK: Array, lengths: Array) -> Array:
        queries, keys, heads = query_BLNK.shape[1], key_BSNK.shape[1], query_BLNK.shape[2]
        query_BNLK, key_BNSK, value_BNSK = (
            _pad_length(array).swapaxes(1, 2) for array in (query_BLNK, key_BSNK, value_BSNK)
        )
        shape = (query_BNLK.shape[2], key_BNSK.shape[2])
        block_query, block_key = map(_block_size, shape)
        kernel = splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask(shape)] * heads),
            block_sizes=splash_attention_kernel.BlockSizes(
                block_q=block_query,
                block_kv=block_key,
                block_q_dkv=block_query,
                block_kv_dkv=block_key,
                # One kernel for all gradients: the scores are computed once.
                use_fused_bwd_kernel=True,
            ),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        if is_packed(lengths):
            numbers_BS = sequence_numbers(lengths, shape[1])
            segments = splash_attention_kernel.SegmentIds(q=numbers_BS, kv=numbers_BS)
        else:
            real_BS = jnp.arange(shape[1]) < jnp.minimum(lengths, keys)[:, None]
            segments = splash_attention_kernel.SegmentIds(
                q=jnp.ones((len(lengths), shape[0]), jnp.int32), kv=real_BS.astype(jnp.int32)
            )
        scale = 1 / math.sqrt(query_BLNK.shape[-1])
        context_BNLK = jax.vmap(kernel)(query_BNLK * scale, key_BNSK, value_BNSK, segments)
        return context_BNLK.swapaxes(1, 2)[:, :queries]

    batch = dividing_axes("batch", query_BLNK.shape[0])
    heads = dividing_axes("heads", query_BLNK.shape[2])
    parts, rows = PartitionSpec(batch, None, heads, None), PartitionSpec(batch)
    mapped = on_each_device(attend, (parts, parts, parts, rows), parts)
    return mapped(query_BLNK, key_BSNK, value_BSNK, lengths)


def cudnn_attention(
    query_BLNK: Array,
    key_BSNK: Array,
    value_BSNK: Array,
    lengths: Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """cuDNN's fused attention for NVIDIA GPUs, in bfloat16.

    Padding is told by the keys' lengths alone: lengths of queries would zero what padded queries
    give. Rows of several sequences need a mask, which becomes a bias in memory, of the scores' size
    but for the heads.

    Args:
      query_BLNK: queries, bfloat16; K is a multiple of 8 up to 128.
      key_BSNK: keys.
      value_BSNK: values.
      lengths: int32, how many leading keys are real. With length 0 the output is finite and means
        nothing. Or the lengths of the sequences of each row, for as many queries as keys.
      dropout_rate: must be left out, and so must
      dropout_key: this.

    Returns:
      Array [B, L, N, K] in the queries' type.

    Raises:
      UserError: there is a key for dropout.
    """
    _refuse_dropout("cudnn", dropout_rate, dropout_key)
    seen_BNLS = None
    if is_packed(lengths):
        numbers_BS = sequence_numbers(lengths, key_BSNK.shape[1])
        seen_BNLS = (numbers_BS[:, :, None] == numbers_BS[:, None])[:, None]
    context_BLNK: Array = jax.nn.dot_product_attention(
        query_BLNK,
        key_BSNK,
        value_BSNK,
        mask=seen_BNLS,
        key_value_seq_lengths=lengths if seen_BNLS is None else None,
        implementation="cudnn",
    )
    return context_BLNK


def _refuse_dropout(implementation: str, rate: float, key: Array | None) -> None:
    if key is not None:
        raise UserError(
            f"attention by {implementation} cannot drop probabilities, and attention_dropout is "
            f"{rate}; set it to 0, or model.attention to xla"
        )


def _pad_length(array_BLNK: Array) -> Array:
    """Pads the length with zeros to a multiple of a TPU's lanes."""
    return jnp.pad(array_BLNK, ((0, 0), (0, -array_BLNK.shape[1] % _LANES), (0, 0), (0, 0)))


def _block_size(length: int) -> int:
    """The largest block that divides a padded length."""
    return max(size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if length % size == 0)
