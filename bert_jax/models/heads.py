"""Heads over the encoder, and the models that pretraining and fine-tuning train.

Every model is applied to ``(token_ids_BL, segment_ids_BL, lengths)`` and keeps its encoder under
``encoder``, so that parameters pass from one to another by name.

Shapes: B batch, L length, Q sequences of a row, M masked positions, P positions that are read,
D model width, V vocabulary (padded), T targets (classes, tags). `lengths` are [B], or [B, Q] for
rows of several sequences.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from bert_jax.models.config import BertConfig
from bert_jax.models.decoder import Decoder, decode, score_in_chunks
from bert_jax.models.encoder import Encoder
from bert_jax.models.layers import Dropout, LayerNorm, Projection, gelu, parameter
from bert_jax.models.losses import cross_entropy, is_correct
from bert_jax.models.packing import first_positions, is_packed, sequence_numbers

Array = jax.Array


class Pooler(nn.Module):
    """BERT's sentence vector: tanh of a projection of a sequence's first position."""

    config: BertConfig

    @nn.compact
    def __call__(self, first: Array) -> Array:
        """Maps first positions [..., D] to [..., D] in the compute type."""
        config = self.config
        # Only one of the two widths is named, since a mesh axis can divide only one.
        projection = Projection(
            shape=(config.width, config.width),
            axes=("width", None),
            stddev=config.initializer_stddev,
            dtype=jnp.dtype(config.compute_dtype),
            name="projection",
        )
        return jnp.tanh(projection(first))


class MaskedLanguageModelHead(nn.Module):
    """Transform (projection, GELU, LayerNorm), then the decoder tied to the word table."""

    config: BertConfig

    def setup(self) -> None:
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        self.transform = Projection(
            shape=(config.width, config.width),
            axes=("width", None),
            stddev=config.initializer_stddev,
            dtype=dtype,
        )
        self.norm = LayerNorm(config.layer_norm_epsilon, dtype)
        zeros = nn.initializers.zeros_init()
        rows = (config.padded_vocabulary_size,)
        self.bias = parameter(self, "bias", zeros, rows, ("vocabulary",))

    def __call__(self, masked_BMD: Array, word_table_VD: Array) -> Array:
        """Scores the vocabulary.

        Args:
          masked_BMD: the encoder's output at the masked positions.
          word_table_VD: the encoder's word embeddings.

        Returns:
          float32 logits [B, M, V]; those of the vocabulary's padding are `PADDING_LOGIT`.
        """
        decoder = Decoder(word_table_VD, self.bias, self.config.vocabulary_size)
        return decode(self._transformed(masked_BMD), decoder, jnp.arange(len(self.bias)))

    def score(
        self, masked_BMD: Array, word_table_VD: Array, labels_BM: Array
    ) -> tuple[Array, Array]:
        """Scores one token a position: its loss, float32, and whether it is the likeliest, bool.

        Both are [B, M], and what `cross_entropy` and `is_correct` make of the logits.
        """
        if self.config.vocabulary_chunks > 1:
            return score_in_chunks(
                self._transformed(masked_BMD),
                Decoder(word_table_VD, self.bias, self.config.vocabulary_size),
                labels_BM,
                self.config.vocabulary_chunks,
            )
        logits_BMV = self(masked_BMD, word_table_VD)
        return cross_entropy(logits_BMV, labels_BM), is_correct(logits_BMV, labels_BM)

    def _transformed(self, masked_BMD: Array) -> Array:
        transformed_BMD: Array = self.norm(gelu(self.transform(masked_BMD)))
        return transformed_BMD


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
            self.next_sentence_head = _target_projection(self.config, 2)

    def __call__(
        self,
        token_ids_BL: Array,
        segment_ids_BL: Array,
        lengths: Array,
        masked_positions_BM: Array,
        *,
        deterministic: bool,
    ) -> tuple[Array, Array | None]:
        """Encodes padded sequences and scores the masked positions and the sentence pairs.

        Args:
          token_ids_BL: int32 word pieces in [0, vocabulary_size).
          segment_ids_BL: int32 segments.
          lengths: int32 real tokens of each row, a prefix, or of each sequence of a row.
          masked_positions_BM: int32 in [0, L); unused slots may repeat any position.
          deterministic: without dropout. Otherwise `apply` needs `rngs={"dropout": key}`.

        Returns:
          float32 logits [B, M, V] over the padded vocabulary, the padding at `PADDING_LOGIT`; and
          float32 next-sentence logits [B, 2] (0 = next, 1 = random), [B, Q, 2] of rows of several
          sequences, or None without that head.

        Raises:
          UserError: L is larger than the position table.
        """
        masked_BMD, pair_logits = self._encode(
            masked_positions_BM, token_ids_BL, segment_ids_BL, lengths, deterministic=deterministic
        )
        return self.mlm_head(masked_BMD, self.encoder.embeddings.word), pair_logits

    def score(
        self,
        token_ids_BL: Array,
        segment_ids_BL: Array,
        lengths: Array,
        masked_positions_BM: Array,
        masked_labels_BM: Array,
        *,
        deterministic: bool,
    ) -> tuple[Array, Array, Array | None]:
        """The same where the logits of no other token than the label are needed, as in training.

        Returns:
          float32 [B, M], the labels' cross-entropies; bool [B, M], whether a label is the likeliest
          token; and the next-sentence logits.
        """
        masked_BMD, pair_logits = self._encode(
            masked_positions_BM, token_ids_BL, segment_ids_BL, lengths, deterministic=deterministic
        )
        losses_BM, correct_BM = self.mlm_head.score(
            masked_BMD, self.encoder.embeddings.word, masked_labels_BM
        )
        return losses_BM, correct_BM, pair_logits

    def _encode(
        self,
        masked_positions_BM: Array,
        token_ids_BL: Array,
        segment_ids_BL: Array,
        lengths: Array,
        *,
        deterministic: bool,
    ) -> tuple[Array, Array | None]:
        encode = partial(
            self.encoder, token_ids_BL, segment_ids_BL, lengths, deterministic=deterministic
        )
        if not self.next_sentence:
            return encode(positions_BP=masked_positions_BM), None
        first_BQ = first_positions(lengths, token_ids_BL.shape[1])
        hidden_BPD = encode(positions_BP=jnp.concatenate([first_BQ, masked_positions_BM], axis=1))
        first_BQD, masked_BMD = jnp.split(hidden_BPD, [first_BQ.shape[1]], axis=1)
        first = first_BQD if is_packed(lengths) else first_BQD[:, 0]
        return masked_BMD, self.next_sentence_head(self.pooler(first))


class EncoderModel(nn.Module):
    """The bare encoder, with BERT's pooler or without.

    Attributes:
      config: the encoder's shape.
      with_pooler: whether the model has a pooler.
    """

    config: BertConfig
    with_pooler: bool = True

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        if self.with_pooler:
            self.pooler = Pooler(self.config)

    def __call__(
        self, token_ids_BL: Array, segment_ids_BL: Array, lengths_B: Array, *, deterministic: bool
    ) -> tuple[Array, Array | None]:
        """Gives hidden states [B, L, D] and the pooled [B, D], or None without a pooler."""
        hidden_BLD = self.encoder(
            token_ids_BL, segment_ids_BL, lengths_B, deterministic=deterministic
        )
        return hidden_BLD, self.pooler(hidden_BLD[:, 0]) if self.with_pooler else None


class SequenceClassifier(nn.Module):
    """Scores whole sequences or pairs: pooler or mean, dropout, projection.

    Attributes:
      config: the encoder's shape.
      targets: T, how many numbers a sequence gets: classes, labels, or 1 for a value or a choice.
      with_pooler: whether BERT's pooler reads the first position. Otherwise the mean over the
        positions is read, as encoders of sentences are trained to have it.
    """

    config: BertConfig
    targets: int
    with_pooler: bool = True

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        if self.with_pooler:
            self.pooler = Pooler(self.config)
        self.dropout = Dropout(self.config.hidden_dropout)
        self.classifier = _target_projection(self.config, self.targets)

    def __call__(
        self, token_ids_BL: Array, segment_ids_BL: Array, lengths: Array, *, deterministic: bool
    ) -> Array:
        """Gives float32 scores [B, T], or [B, Q, T] of rows of several sequences."""
        packed = is_packed(lengths)
        first_BQ = first_positions(lengths, token_ids_BL.shape[1]) if self.with_pooler else None
        hidden_BPD = self.encoder(
            token_ids_BL,
            segment_ids_BL,
            lengths,
            deterministic=deterministic,
            positions_BP=first_BQ,
        )
        if self.with_pooler:
            read = self.pooler(hidden_BPD if packed else hidden_BPD[:, 0])
        else:
            read = mean_pool(hidden_BPD, lengths)
        scores: Array = self.classifier(self.dropout(read, deterministic=deterministic))
        return scores


class TokenClassifier(nn.Module):
    """Scores every token: dropout, projection.

    With two targets, a span's start and end, it is BERT's model for SQuAD, which has no dropout.

    Attributes:
      config: the encoder's shape.
      targets: T, how many numbers a token gets.
      dropout: whether there is dropout between encoder and projection.
    """

    config: BertConfig
    targets: int
    dropout: bool = True

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.drop = Dropout(self.config.hidden_dropout if self.dropout else 0.0)
        self.classifier = _target_projection(self.config, self.targets)

    def __call__(
        self, token_ids_BL: Array, segment_ids_BL: Array, lengths: Array, *, deterministic: bool
    ) -> Array:
        """Gives float32 scores [B, L, T]; those at padding mean nothing."""
        hidden_BLD = self.encoder(
            token_ids_BL, segment_ids_BL, lengths, deterministic=deterministic
        )
        scores_BLT: Array = self.classifier(self.drop(hidden_BLD, deterministic=deterministic))
        return scores_BLT


def _target_projection(config: BertConfig, targets: int) -> Projection:
    return Projection(
        shape=(config.width, targets),
        axes=("width", "classes"),
        stddev=config.initializer_stddev,
        dtype=jnp.dtype("float32"),
    )


def mean_pool(hidden_BLD: Array, lengths: Array) -> Array:
    """The mean over the real tokens, special ones included, as sentence-transformers takes it.

    Args:
      hidden_BLD: the encoder's output.
      lengths: int32 real tokens of each row, a prefix, or of each sequence of a row; one without
        any gives zeros.

    Returns:
      float32 [B, D], or [B, Q, D] of rows of several sequences.
    """
    packed = is_packed(lengths)
    lengths_BQ = lengths if packed else lengths[:, None]
    numbers_BL = sequence_numbers(lengths_BQ, hidden_BLD.shape[1])
    own_BLQ = jax.nn.one_hot(numbers_BL, lengths_BQ.shape[1])
    total_BQD = jnp.einsum("BLD,BLQ->BQD", hidden_BLD.astype(jnp.float32), own_BLQ)
    mean_BQD = total_BQD / jnp.maximum(lengths_BQ, 1)[..., None]
    return mean_BQD if packed else mean_BQD[:, 0]
