"""BERT as one writes it with flax.linen's own parts: a peer for `train_step.py`.

Every layer is called in a Python loop, dropout is flax's, the vocabulary is decoded at every
position, and AdamW is optax's.

Shapes: B batch, L length, D model width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bert_jax.models.config import BertConfig

Array = jax.Array


class Layer(nn.Module):
    """A post-norm transformer layer."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden_BLD: Array, mask_B1LL: Array) -> Array:
        """Maps [B, L, D] to [B, L, D], with dropout."""
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        attended_BLD = nn.MultiHeadDotProductAttention(
            num_heads=config.heads,
            dtype=dtype,
            dropout_rate=config.attention_dropout,
            broadcast_dropout=False,  # each probability by itself, as the others do
            deterministic=False,
        )(hidden_BLD, mask=mask_B1LL)
        attended_BLD = nn.Dropout(config.hidden_dropout, deterministic=False)(attended_BLD)
        hidden_BLD = nn.LayerNorm(config.layer_norm_epsilon, dtype)(hidden_BLD + attended_BLD)
        inner_BLD = nn.Dense(config.feed_forward_width, dtype=dtype)(hidden_BLD)
        inner_BLD = nn.Dense(config.width, dtype=dtype)(nn.gelu(inner_BLD, approximate=False))
        inner_BLD = nn.Dropout(config.hidden_dropout, deterministic=False)(inner_BLD)
        return nn.LayerNorm(config.layer_norm_epsilon, dtype)(hidden_BLD + inner_BLD)


class PlainBert(nn.Module):
    """BERT for pretraining."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, token_ids_BL: Array, segment_ids_BL: Array, lengths_B: Array
    ) -> tuple[Array, Array]:
        """Gives logits of the vocabulary [B, L, V] and of next sentences [B, 2], with dropout."""
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        length = token_ids_BL.shape[1]
        words = nn.Embed(config.vocabulary_size, config.width, dtype=dtype)
        hidden_BLD = words(token_ids_BL)
        hidden_BLD += nn.Embed(config.max_positions, config.width, dtype=dtype)(jnp.arange(length))
        hidden_BLD += nn.Embed(config.segments, config.width, dtype=dtype)(segment_ids_BL)
        hidden_BLD = nn.LayerNorm(config.layer_norm_epsilon, dtype)(hidden_BLD)
        hidden_BLD = nn.Dropout(config.hidden_dropout, deterministic=False)(hidden_BLD)
        real_BL = jnp.arange(length) < lengths_B[:, None]
        mask_B1LL = nn.make_attention_mask(jnp.ones_like(real_BL), real_BL)
        for _ in range(config.layers):
            hidden_BLD = Layer(config)(hidden_BLD, mask_B1LL)
        pooled_BD = jnp.tanh(nn.Dense(config.width, dtype=dtype)(hidden_BLD[:, 0]))
        transformed_BLD = nn.gelu(
            nn.Dense(config.width, dtype=dtype)(hidden_BLD), approximate=False
        )
        transformed_BLD = nn.LayerNorm(config.layer_norm_epsilon, dtype)(transformed_BLD)
        bias_V = self.param("bias", nn.initializers.zeros_init(), (config.vocabulary_size,))
        return words.attend(transformed_BLD) + bias_V, nn.Dense(2)(pooled_BD)
