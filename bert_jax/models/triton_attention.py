"""Self-attention in one kernel for NVIDIA GPUs, with dropout: its scores are never in memory.

FlashAttention (Dao et al., arXiv:2205.14135) written in Pallas, which has it compiled by Triton.
What it adds to cuDNN's: attention probabilities are dropped, by the bits that `layers.dropout`
would use; queries, keys and values are read from the one array that their projection makes, before
its bias is added, and so are their gradients written; sequences that share a row are told apart by
numbers.

Shapes: B batch, L length, T the three of query, key and value, Q sequences of a row, N heads, K
head width, I queries of a block, J keys of a block, P blocks. `lengths` are [B], or [B, Q] for rows
of several sequences.
"""

import math
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
from bert_jax.models.packing import is_packed, sequence_numbers

Array = jax.Array

# Stands in for minus infinity: finite, so that a sequence of length 0 gives finite numbers.
_MASKED_SCORE = -1e9
_LARGEST_BLOCK = 128
_SMALLEST_BLOCK = 16  # of what a tensor core multiplies
_WARPS = 8  # that share the scores of a largest block; half of them those of others


class _Settings(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
      length: of a row, without the padding to whole blocks.
      block: how many queries, and keys, are computed at a time.
      heads: of the whole model.
      kept: of `STEPS` random numbers, how many keep a probability.
      packed: rows hold several sequences.
      interpret: run the kernels step by step on whatever platform there is, slowly.
    """

    length: int
    block: int
    heads: int
    kept: int
    packed: bool
    interpret: bool


def triton_attention(
    projected_BLTNK: Array,
    bias_TNK: Array,
    lengths: Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Attends from every position to the real ones of its sequence.

    The partitioner of `jit` cannot look into a kernel. In a mesh, each device computes the batch
    and the heads that the logical axis rules give it; an axis that the mesh does not divide is
    computed whole everywhere.

    Args:
      projected_BLTNK: queries, keys and values, bfloat16; K is a power of 2 from 16 to 128.
      bias_TNK: float32, what is still to be added to them.
      lengths: int32, how many leading positions are real. With length 0 the output is finite and
        means nothing. Or the lengths of the sequences of each row.
      dropout_rate: dropped share of the attention probabilities.
      dropout_key: typed PRNG key for it; without one nothing is dropped.
      interpret: run the kernels step by step on whatever platform there is, slowly.

    Returns:
      Array [B, L, N, K] in the inputs' type.
    """
    batch, length, _, heads, _ = projected_BLTNK.shape
    block = min(max(pl.next_power_of_2(length), _SMALLEST_BLOCK), _LARGEST_BLOCK)
    kept, words = draw(dropout_rate, dropout_key)
    settings = _Settings(length, block, heads, kept, is_packed(lengths), interpret)
    if settings.packed:
        numbers_BL = sequence_numbers(lengths, length)
    else:
        numbers_BL = (jnp.arange(length) < lengths[:, None]).astype(jnp.int32)

    batch_axes, head_axes = dividing_axes("batch", batch), dividing_axes("heads", heads)

    def attend_part(
        projected_BLTNK: Array, bias_TNK: Array, numbers_BL: Array, words: Array
    ) -> Array:
        first = [
            lax.axis_index(axes) * projected_BLTNK.shape[axis] if axes else 0
            for axis, axes in ((0, batch_axes), (3, head_axes))
        ]
        key = jnp.concatenate([words, jnp.array(first, jnp.uint32)])
        padding = -length % block
        # Padding is of no sequence: not of 1, nor of any that is counted from 0.
        numbers_BL = jnp.pad(numbers_BL, ((0, 0), (0, padding)), constant_values=-1)
        padded_BLTNK = jnp.pad(projected_BLTNK, ((0, 0), (0, padding), *[(0, 0)] * 3))
        return _attend(padded_BLTNK, bias_TNK, numbers_BL, key, settings)[:, :length]

    mapped = on_each_device(
        attend_part,
        (
            PartitionSpec(batch_axes, None, None, head_axes, None),
            PartitionSpec(None, head_axes),
            PartitionSpec(batch_axes),
            PartitionSpec(),
        ),
        PartitionSpec(batch_axes, None, head_axes, None),
    )
    return mapped(projected_BLTNK, bias_TNK, numbers_BL, words)


def stacked_triton_attention(
    query_BLNK: Array, key_BLNK: Array, value_BLNK: Array, lengths: Array, **settings: Any
) -> Array:
    """`triton_attention` of queries, keys and values that stand apart; it copies them."""
    projected_BLTNK = jnp.stack([query_BLNK, key_BLNK, value_BLNK], axis=2)
    no_bias_TNK = jnp.zeros(projected_BLTNK.shape[2:], jnp.float32)
    return triton_attention(projected_BLTNK, no_bias_TNK, lengths, **settings)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    projected_BLTNK: Array, bias_TNK: Array, numbers_BL: Array, key: Array, settings: _Settings
) -> Array:
    """Attention, for a length of whole blocks.

    Args:
      projected_BLTNK: queries, keys and values, without
      bias_TNK: this.
      numbers_BL: int32, the sequence that a position is of; where there is one, 1 if it is real.
      key: uint32 [4], two words for dropout, then the numbers of the first row and the first head.
      settings: the rest.
    """
    return _attend_forward(projected_BLTNK, bias_TNK, numbers_BL, key, settings)[0]


def _attend_forward(
    projected_BLTNK: Array, bias_TNK: Array, numbers_BL: Array, key: Array, settings: _Settings
) -> tuple[Array, tuple[Array, ...]]:
    batch, length, _, heads, width = projected_BLTNK.shape
    block = settings.block
    context_BLNK, normalizer_BNL = pl.pallas_call(
        partial(_forward_kernel, settings),
        grid=(length // block, batch, heads),
        in_specs=_input_specs(length, width),
        out_specs=[
            pl.BlockSpec((None, block, None, width), lambda i, b, n: (b, i, n, 0)),
            pl.BlockSpec((None, None, block), lambda i, b, n: (b, n, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((batch, length, heads, width), projected_BLTNK.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=_warps(block), num_stages=2),
        interpret=settings.interpret,
        name="attention_forward",
    )(key, numbers_BL, bias_TNK, projected_BLTNK)
    residuals = (projected_BLTNK, bias_TNK, numbers_BL, key, context_BLNK, normalizer_BNL)
    return context_BLNK, residuals


def _attend_backward(
    settings: _Settings, residuals: tuple[Array, ...], gradient_BLNK: Array
) -> tuple[Array, Array, None, None]:
    projected_BLTNK, bias_TNK, numbers_BL, key, context_BLNK, normalizer_BNL = residuals
    batch, length, _, heads, width = projected_BLTNK.shape
    block = settings.block
    whole = pl.BlockSpec((None, length, None, width), lambda i, b, n: (b, 0, n, 0))
    gradient_BLTNK, bias_gradient_BPTNK = pl.pallas_call(
        partial(_backward_kernel, settings),
        grid=(length // block, batch, heads),
        in_specs=[
            *_input_specs(length, width),
            whole,
            pl.BlockSpec((None, None, length), lambda i, b, n: (b, n, 0)),
            whole,
        ],
        out_specs=[
            pl.BlockSpec((None, block, 3, None, width), lambda i, b, n: (b, i, 0, n, 0)),
            pl.BlockSpec((None, None, 3, None, width), lambda i, b, n: (b, i, 0, n, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(projected_BLTNK.shape, projected_BLTNK.dtype),
            jax.ShapeDtypeStruct((batch, length // block, 3, heads, width), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=_warps(block), num_stages=2),
        interpret=settings.interpret,
        name="attention_backward",
    )(key, numbers_BL, bias_TNK, projected_BLTNK, context_BLNK, normalizer_BNL, gradient_BLNK)
    return gradient_BLTNK, jnp.sum(bias_gradient_BPTNK, axis=(0, 1)), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _input_specs(length: int, width: int) -> list[pl.BlockSpec]:
    """Of the key, the numbers of sequences, the bias, and the projections of one row and head."""
    return [
        pl.BlockSpec((4,), lambda i, b, n: (0,)),
        pl.BlockSpec((None, length), lambda i, b, n: (b, 0)),
        pl.BlockSpec((3, None, width), lambda i, b, n: (0, n, 0)),
        pl.BlockSpec((None, length, 3, None, width), lambda i, b, n: (b, 0, 0, n, 0)),
    ]


def _warps(block: int) -> int:
    """How many warps share a block's scores."""
    return _WARPS if block == _LARGEST_BLOCK else _WARPS // 2


class _Head:
    """One head of one row, in a kernel: loads its blocks and scores them.

    Logarithms and exponentials have base 2, which is what the hardware computes.
    """

    def __init__(
        self,
        settings: _Settings,
        key_ref: Any,
        numbers_ref: Any,
        bias_ref: Any,
        projected_ref: Any,
    ):
        self._settings = settings
        self._words = key_ref[0], key_ref[1]
        row = key_ref[2] + pl.program_id(1).astype(jnp.uint32)
        head = key_ref[3] + pl.program_id(2).astype(jnp.uint32)
        # Where the scores of this head begin among those of the whole batch.
        self._start = (row * np.uint32(settings.heads) + head) * np.uint32(settings.length)
        self._numbers_ref = numbers_ref
        self._bias_ref = bias_ref
        self._projected_ref = projected_ref
        self._scale = math.log2(math.e) / math.sqrt(projected_ref.shape[-1])

    def rows(self, block: Any) -> Any:
        """The positions of a block."""
        return pl.ds(block * self._settings.block, self._settings.block)

    def load(self, which: int, block: Any) -> Array:
        """A block of the queries (0), keys (1) or values (2): [I, K]."""
        loaded = self._projected_ref[self.rows(block), which, :]
        biased = loaded.astype(jnp.float32) + self._bias_ref[which, :][None, :]
        return biased.astype(loaded.dtype)

    def scores(self, query_IK: Array, key_JK: Array, queries: Any, keys: Any) -> Array:
        """Of two blocks, which are numbered: float32 [I, J]."""
        scores_IJ = _dot(query_IK, key_JK.T) * self._scale
        key_numbers_J = self._numbers_ref[self.rows(keys)]
        if self._settings.packed:
            query_numbers_I = self._numbers_ref[self.rows(queries)]
            seen_IJ = query_numbers_I[:, None] == key_numbers_J[None, :]
        else:
            seen_IJ = jnp.broadcast_to((key_numbers_J == 1)[None, :], scores_IJ.shape)
        return jnp.where(seen_IJ, scores_IJ, _MASKED_SCORE)

    def dropout(self, queries: Any, keys: Any) -> Array | float:
        """What dropout multiplies the probabilities of two blocks with: float32 [I, J], or 1."""
        settings = self._settings
        if settings.kept == STEPS:
            return 1.0
        position_I = (self._start + self._positions(queries)) * np.uint32(settings.length)
        position_IJ = position_I[:, None] + self._positions(keys)[None, :]
        keep_IJ = is_kept(position_IJ, *self._words, settings.kept)
        return jnp.where(keep_IJ, STEPS / settings.kept, 0.0)

    def _positions(self, block: Any) -> Array:
        start = jnp.asarray(block, jnp.int32) * self._settings.block
        return (start + jnp.arange(self._settings.block)).astype(jnp.uint32)


def _forward_kernel(
    settings: _Settings,
    key_ref: Any,
    numbers_ref: Any,
    bias_ref: Any,
    projected_ref: Any,
    context_ref: Any,
    normalizer_ref: Any,
) -> None:
    """One block of queries: its output [I, K], and the logarithm of the softmax's denominator."""
    head = _Head(settings, key_ref, numbers_ref, bias_ref, projected_ref)
    queries = pl.program_id(0)
    query_IK = head.load(0, queries)

    def add_keys(keys: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        context_IK, highest_I, sum_I = carry
        scores_IJ = head.scores(query_IK, head.load(1, keys), queries, keys)
        new_highest_I = jnp.maximum(highest_I, jnp.max(scores_IJ, axis=1))
        shrink_I = jnp.exp2(highest_I - new_highest_I)
        exponentials_IJ = jnp.exp2(scores_IJ - new_highest_I[:, None])
        sum_I = sum_I * shrink_I + jnp.sum(exponentials_IJ, axis=1)
        value_JK = head.load(2, keys)
        dropped_IJ = exponentials_IJ * head.dropout(queries, keys)
        added_IK = _dot(dropped_IJ.astype(value_JK.dtype), value_JK)
        context_IK = context_IK * shrink_I[:, None] + added_IK
        return context_IK, new_highest_I, sum_I

    start = (
        jnp.zeros(query_IK.shape, jnp.float32),
        jnp.full(settings.block, -jnp.inf, jnp.float32),
        jnp.zeros(settings.block, jnp.float32),
    )
    context_IK, highest_I, sum_I = _over_blocks(projected_ref, settings, add_keys, start)
    context_ref[...] = (context_IK / sum_I[:, None]).astype(context_ref.dtype)
    normalizer_ref[...] = highest_I + jnp.log2(sum_I)


def _backward_kernel(
    settings: _Settings,
    key_ref: Any,
    numbers_ref: Any,
    bias_ref: Any,
    projected_ref: Any,
    context_ref: Any,
    normalizer_ref: Any,
    gradient_ref: Any,
    projected_gradient_ref: Any,
    bias_gradient_ref: Any,
) -> None:
    """The gradients of one block of keys and values, and of the queries at the same positions."""
    head = _Head(settings, key_ref, numbers_ref, bias_ref, projected_ref)
    block, blocks = pl.program_id(0), projected_ref.shape[0] // settings.block
    scale = 1 / math.sqrt(projected_ref.shape[-1])

    def differentiate(
        query_IK: Array, key_JK: Array, value_JK: Array, queries: Any, keys: Any
    ) -> tuple[Array, Array, Array]:
        """The context's gradient, the probabilities as they were dropped, the scores' gradient."""
        rows = head.rows(queries)
        context_gradient_IK = gradient_ref[rows, :]
        scores_IJ = head.scores(query_IK, key_JK, queries, keys)
        probabilities_IJ = jnp.exp2(scores_IJ - normalizer_ref[rows][:, None])
        dropout_IJ = head.dropout(queries, keys)
        dropped_IJ = probabilities_IJ * dropout_IJ
        gradient_IJ = _dot(context_gradient_IK, value_JK.T) * dropout_IJ
        if blocks == 1:
            product_I = jnp.sum(probabilities_IJ * gradient_IJ, axis=1)
        else:
            # The same, from what the sum over all keys gave.
            product_I = jnp.sum(
                context_ref[rows, :].astype(jnp.float32) * context_gradient_IK.astype(jnp.float32),
                axis=1,
            )
        scores_gradient_IJ = probabilities_IJ * (gradient_IJ - product_I[:, None]) * scale
        dtype = query_IK.dtype
        return context_gradient_IK, dropped_IJ.astype(dtype), scores_gradient_IJ.astype(dtype)

    query_IK, key_IK, value_IK = (head.load(which, block) for which in range(3))

    def add_queries(queries: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        key_gradient_JK, value_gradient_JK = carry
        other_query_IK = head.load(0, queries)
        context_gradient_IK, dropped_IJ, scores_gradient_IJ = differentiate(
            other_query_IK, key_IK, value_IK, queries, block
        )
        key_gradient_JK += _dot(scores_gradient_IJ.T, other_query_IK)
        value_gradient_JK += _dot(dropped_IJ.T, context_gradient_IK)
        return key_gradient_JK, value_gradient_JK

    def add_keys(keys: Any, query_gradient_IK: Array) -> Array:
        other_key_JK = head.load(1, keys)
        *_, scores_gradient_IJ = differentiate(
            query_IK, other_key_JK, head.load(2, keys), block, keys
        )
        return query_gradient_IK + _dot(scores_gradient_IJ, other_key_JK)

    if blocks == 1:
        context_gradient_IK, dropped_IJ, scores_gradient_IJ = differentiate(
            query_IK, key_IK, value_IK, block, block
        )
        query_gradient_IK = _dot(scores_gradient_IJ, key_IK)
        key_gradient_IK = _dot(scores_gradient_IJ.T, query_IK)
        value_gradient_IK = _dot(dropped_IJ.T, context_gradient_IK)
    else:
        zeros_IK = jnp.zeros(query_IK.shape, jnp.float32)
        key_gradient_IK, value_gradient_IK = _over_blocks(
            projected_ref, settings, add_queries, (zeros_IK, zeros_IK)
        )
        query_gradient_IK = _over_blocks(projected_ref, settings, add_keys, zeros_IK)
    for which, part_IK in enumerate((query_gradient_IK, key_gradient_IK, value_gradient_IK)):
        projected_gradient_ref[:, which, :] = part_IK.astype(projected_gradient_ref.dtype)
        bias_gradient_ref[which, :] = jnp.sum(part_IK, axis=0)


def _over_blocks(projected_ref: Any, settings: _Settings, visit: Any, start: Any) -> Any:
    """Visits all blocks of a row, with what was carried from the one before."""
    blocks = projected_ref.shape[0] // settings.block
    return visit(0, start) if blocks == 1 else lax.fori_loop(0, blocks, visit, start)


def _dot(left: Array, right: Array) -> Array:
    return jnp.dot(left, right, preferred_element_type=jnp.float32)
