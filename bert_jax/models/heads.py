"""Heads over the encoder, and the model that pretraining trains.

Shapes: B batch, L length, M masked positions, D model width, V vocabulary (padded).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Encoder
from bert_jax.models.layers import LayerNorm, Projection, gelu, parameter

Array = jax.Array

# The logit of vocabulary padding: its softmax is exactly zero, its gradient too.
PADDING_LOGIT = -1e9


class Pooler(nn.Module):
    """BERT's sentence vector: tanh of a projection of the first position."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden_BLD: Array) -> Array:
        """Maps [B, L, D] to [B, D] in the compute type."""
        config = self.config
        # Only one of the two widths is named, since a mesh axis can divide only one.
        projection = Projection(
            shape=(config.width, config.width),
            axes=("width", None),
            stddev=config.initializer_stddev,
            dtype=jnp.dtype(config.compute_dtype),
            name="projection",
        )
        return jnp.tanh(projection(hidden_BLD[:, 0]))


class MaskedLanguageModelHead(nn.Module):
    """Transform (projection, GELU, LayerNorm), then the decoder tied to the word table."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, hidden_BLD: Array, masked_positions_BM: Array, word_table_VD: Array
    ) -> Array:
        """Scores the vocabulary at the masked positions only.

        Args:
          hidden_BLD: the encoder's output.
          masked_positions_BM: int32 in [0, L); unused slots may repeat any position.
          word_table_VD: the encoder's word embeddings.

        Returns:
          float32 logits [B, M, V]; those of the vocabulary's padding are `PADDING_LOGIT`.
        """
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        masked_BMD = jnp.take_along_axis(hidden_BLD, masked_positions_BM[..., None], axis=1)
        transformed_BMD = Projection(
            shape=(config.width, config.width),
            axes=("width", None),
            stddev=config.initializer_stddev,
            dtype=dtype,
            name="transform",
        )(masked_BMD)
        transformed_BMD = LayerNorm(config.layer_norm_epsilon, dtype, name="norm")(
            gelu(transformed_BMD)
        )
        bias_V = parameter(
            self,
            "bias",
            nn.initializers.zeros_init(),
            (config.padded_vocabulary_size,),
            ("vocabulary",),
        )
        logits_BMV = jnp.einsum(
            "BMD,VD->BMV",
            transformed_BMD,
            word_table_VD.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        # The bias is added as an outer product with ones, so that its gradient is a matrix-vector
        # product; on CPU the sum over rows that broadcasting would give takes ten times as long.
        ones_BM = jnp.ones(masked_positions_BM.shape, jnp.float32)
        logits_BMV += jnp.einsum("BM,V->BMV", ones_BM, bias_V)
        real_V = jnp.arange(config.padded_vocabulary_size) < config.vocabulary_size
        return jnp.where(real_V, logits_BMV, PADDING_LOGIT)


class PretrainingModel(nn.Module):
    """BERT with its two pretraining heads.

    Attributes:
      config: the encoder's shape.
      next_sentence: whether there are a pooler and a next-sentence head; without them the model has
        no such parameters and gives no next-sentence logits.
    """

    config: BertConfig
    next_sentence: bool = True

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.mlm_head = MaskedLanguageModelHead(self.config)
        if self.next_sentence:
            self.pooler = Pooler(self.config)
            self.next_sentence_head = Projection(
                shape=(self.config.width, 2),
                axes=("width", "classes"),
                stddev=self.config.initializer_stddev,
                dtype=jnp.dtype("float32"),
            )

    def __call__(
        self,
        token_ids_BL: Array,
        segment_ids_BL: Array,
        lengths_B: Array,
        masked_positions_BM: Array,
        *,
        deterministic: bool,
    ) -> tuple[Array, Array | None]:
        """Encodes padded sequences and scores the masked positions and the sentence pairs.

        Args:
          token_ids_BL: int32 word pieces in [0, vocabulary_size).
          segment_ids_BL: int32 segments.
          lengths_B: int32 real tokens of each row, a prefix.
          masked_positions_BM: int32 in [0, L); unused slots may repeat any position.
          deterministic: without dropout. Otherwise `apply` needs `rngs={"dropout": key}`.

        Returns:
          float32 logits [B, M, V] over the padded vocabulary, the padding at `PADDING_LOGIT`; and
          float32 next-sentence logits [B, 2] (0 = next, 1 = random), or None without that head.

        Raises:
          UserError: L is larger than the position table.
        """
        hidden_BLD = self.encoder(
            token_ids_BL, segment_ids_BL, lengths_B, deterministic=deterministic
        )
        word_table_VD = self.encoder.embeddings.word
        mlm_logits_BMV = self.mlm_head(hidden_BLD, masked_positions_BM, word_table_VD)
        if not self.next_sentence:
            return mlm_logits_BMV, None
        return mlm_logits_BMV, self.next_sentence_head(self.pooler(hidden_BLD))
