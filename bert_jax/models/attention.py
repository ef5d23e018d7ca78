"""Bidirectional multi-head self-attention (Vaswani et al., arXiv:1706.03762).

Shapes: B batch, L length (of queries), S length (of keys and values), Q sequences of a row, D model
width, N heads, K head width. `lengths` are [B], or [B, Q] for rows of several sequences.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from bert_jax.models.adaptation import add_low_rank_update
from bert_jax.models.config import BertConfig
from bert_jax.models.kernels import load_kernel
from bert_jax.models.layers import Projection, Update, dropout
from bert_jax.models.packing import is_packed, sequence_numbers

Array = jax.Array

# Stands in for minus infinity. It is finite, so that a sequence of length 0 attends evenly instead
# of giving NaN, and large enough for exp to underflow to an exact zero beside any real score.
MASKED_SCORE = -1e9


def dot_product_attention(
    query_BLNK: Array,
    key_BSNK: Array,
    value_BSNK: Array,
    lengths: Array,
    query_positions_BL: Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Attends from every query to the real keys of its sequence.

    Scores and softmax are computed in float32, the two products in the inputs' type.

    Args:
      query_BLNK: queries.
      key_BSNK: keys.
      value_BSNK: values.
      lengths: int32, how many leading keys are real. Keys past them change nothing. With length 0
        the output is finite and means nothing. Or the lengths of the sequences of each row.
      query_positions_BL: int32, where the queries stand among the keys; None: where the keys do.
      dropout_rate: dropped share of the attention probabilities.
      dropout_key: typed PRNG key for it; without one nothing is dropped.

    Returns:
      Array [B, L, N, K] in the queries' type.
    """
    scale = 1 / math.sqrt(query_BLNK.shape[-1])
    scores_BNLS = jnp.einsum(
        "BLNK,BSNK->BNLS", query_BLNK * scale, key_BSNK, preferred_element_type=jnp.float32
    )
    if is_packed(lengths):
        numbers_BS = sequence_numbers(lengths, key_BSNK.shape[1])
        numbers_BL = numbers_BS
        if query_positions_BL is not None:
            numbers_BL = jnp.take_along_axis(numbers_BS, query_positions_BL, axis=1)
        seen_BLS = numbers_BL[:, :, None] == numbers_BS[:, None]
    else:
        seen_BLS = (jnp.arange(key_BSNK.shape[1]) < lengths[:, None])[:, None]
    scores_BNLS = jnp.where(seen_BLS[:, None], scores_BNLS, MASKED_SCORE)
    probabilities_BNLS = jax.nn.softmax(scores_BNLS, axis=-1).astype(value_BSNK.dtype)
    if dropout_key is not None:
        probabilities_BNLS = dropout(probabilities_BNLS, dropout_rate, dropout_key)
    return jnp.einsum("BNLS,BSNK->BLNK", probabilities_BNLS, value_BSNK)


# What computes the same in one kernel.
_KERNELS = {
    "splash": "fused_attention:splash_attention",
    "cudnn": "fused_attention:cudnn_attention",
    "triton": "triton_attention:stacked_triton_attention",
}
# And this from the three projections as they come, without a copy.
_TRITON_ATTENTION = "triton_attention:triton_attention"


def implementation(name: str) -> Callable[..., Array]:
    """The function of a name in `config.ATTENTIONS`."""
    return dot_product_attention if name == "xla" else load_kernel(_KERNELS[name])


class SelfAttention(nn.Module):
    """Query, key and value projections, attention and output projection of one layer.

    The three projections are one parameter. They are computed apart, so that their gradients need
    not be joined, and so that queries may be fewer than keys.
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        queries_BLD: Array,
        hidden_BSD: Array,
        lengths: Array,
        query_positions_BL: Array | None = None,
        *,
        deterministic: bool,
    ) -> Update:
        """Gives the attention block's output at the queries.

        Args:
          queries_BLD: the hidden states of the positions that attend.
          hidden_BSD: those of all positions, which are attended to.
          lengths: int32, how many of them are real, or how many each sequence of a row has.
          query_positions_BL: int32, where the queries stand, if they are not all positions.
          deterministic: without dropout.
        """
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        projection = Projection(
            shape=(config.width, 3, config.heads, config.head_width),
            axes=("width", "qkv", "heads", "head_width"),
            stddev=config.initializer_stddev,
            dtype=dtype,
            name="query_key_value",
        )
        drop = config.attention_dropout > 0.0 and not deterministic
        dropout_key = self.make_rng("dropout") if drop else None
        rate = config.attention_dropout
        whole = query_positions_BL is None and not config.is_adapted
        # Each query's probabilities sum to 1 where none can be dropped, so that the values' bias
        # passes through attention as it is: on a GPU its sum would be a pass over memory, where a
        # mesh that splits the heads has one small all-reduce for it now. The keys' adds the same to
        # all scores of a query, and is left to our own kernel, which has no pass to save.
        late_value_bias = config.attention == "cudnn" and whole
        unbiased = ("key", "value") if late_value_bias else ("key",)
        if config.attention == "triton" and whole:
            context_BLNK = load_kernel(_TRITON_ATTENTION)(
                projection.without_bias(hidden_BSD),
                projection.bias,
                lengths,
                dropout_rate=rate,
                dropout_key=dropout_key,
            )
        else:
            query_BLNK, key_BSNK, value_BSNK = (
                add_low_rank_update(
                    config,
                    target,
                    inputs,
                    projection.part(number, inputs, biased=target not in unbiased),
                    axes=("width", "heads", "head_width"),
                )
                for number, (target, inputs) in enumerate(
                    (("query", queries_BLD), ("key", hidden_BSD), ("value", hidden_BSD))
                )
            )
            if query_positions_BL is None:
                attend = implementation(config.attention)
            else:
                # Of few queries the scores are few, and a kernel would pad them to its blocks.
                attend = partial(dot_product_attention, query_positions_BL=query_positions_BL)
            context_BLNK = attend(
                query_BLNK,
                key_BSNK,
                value_BSNK,
                lengths,
                dropout_rate=rate,
                dropout_key=dropout_key,
            )
        axes = ("heads", "head_width", "width")
        output = Projection(
            shape=(config.heads, config.head_width, config.width),
            axes=axes,
            stddev=config.initializer_stddev,
            dtype=dtype,
            contracted=2,
            name="output",
        )
        bias_D = output.bias_after(projection.bias[2]) if late_value_bias else output.bias
        if config.norm_adds_bias:
            return Update(output.without_bias(context_BLNK), bias_D)
        output_BLD = output(context_BLNK, bias_D)
        return Update(
            add_low_rank_update(
                config, "attention_output", context_BLNK, output_BLD, axes, contracted=2
            )
        )
