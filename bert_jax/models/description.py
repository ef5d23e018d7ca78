"""What a model is, apart from its parameters: enough to build it again, as plain JSON.

A description is kept in every checkpoint, so that a model can be loaded without its task, config or
data.
"""

import dataclasses
import enum
import json
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bert_jax.errors import UserError
from bert_jax.models.config import RUN_FIELDS, BertConfig
from bert_jax.models.heads import (
    EncoderModel,
    PretrainingModel,
    SequenceClassifier,
    TokenClassifier,
)


class Head(enum.StrEnum):
    """What the encoder's output is turned into."""

    NONE = "none"  # hidden states, for embeddings
    PRETRAINING = "pretraining"  # masked tokens, and the relation of two segments
    CLASSIFICATION = "classification"  # one class of a sequence
    MULTI_LABEL = "multi_label"  # any number of labels of a sequence
    REGRESSION = "regression"  # one number for a sequence
    CHOICE = "choice"  # the best of several sequences
    TAGGING = "tagging"  # one tag of every word
    QUESTION_ANSWERING = "question_answering"  # a span of the text


class Pooling(enum.StrEnum):
    """What is read of a sequence: for its embedding, or by a classifier."""

    MEAN = "mean"  # the mean over real tokens
    CLS = "cls"  # the first token; by a classifier through BERT's pooler


_OF_SEQUENCES = (Head.CLASSIFICATION, Head.MULTI_LABEL, Head.REGRESSION, Head.CHOICE)


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """A model without its parameters.

    Attributes:
      config: the encoder's shape, the vocabulary's size included.
      head: what stands on the encoder.
      labels: names of the classes, labels or tags, in the order of the outputs.
      pooler: whether there is a pooler; with the pretraining head, a next-sentence head too. A head
        for classes, labels, a value or a choice reads the mean of the hidden states where there is
        none. Tagging and question answering never have one.
      pooling: how ``encode`` makes embeddings, whatever the head reads.
      normalize: whether embeddings are scaled to length 1.
      max_length: the longest input that predictions are made on, special tokens included.
      pairs: whether a head for classes, labels or a value was trained on pairs of texts; None where
        nobody says.
      options: settings of a task that its predictions need, such as a threshold.

    Raises:
      UserError: the head needs labels and there are none, two are alike, or `max_length` is no
        length.
    """

    config: BertConfig
    head: Head
    labels: tuple[str, ...] = ()
    pooler: bool = True
    pooling: Pooling = Pooling.MEAN
    normalize: bool = False
    max_length: int = 512
    pairs: bool | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.head in (Head.CLASSIFICATION, Head.MULTI_LABEL, Head.TAGGING) and not self.labels:
            raise UserError(f"a model for {self.head} needs the names of its labels")
        texts = all(isinstance(label, str) for label in self.labels)
        if not texts or len(set(self.labels)) < len(self.labels):
            raise UserError(f"the labels {self.labels} are alike or no texts; give each its name")
        if type(self.max_length) is not int or self.max_length < 1:
            raise UserError(f"max_length is {self.max_length!r}; give a whole number of tokens")

    def model(self) -> nn.Module:
        """The flax module; apply it to parameters of this description."""
        match self.head:
            case Head.NONE:
                return EncoderModel(self.config, with_pooler=self.pooler)
            case Head.PRETRAINING:
                return PretrainingModel(self.config, next_sentence=self.pooler)
            case Head.CLASSIFICATION | Head.MULTI_LABEL:
                return SequenceClassifier(self.config, len(self.labels), self.pooler)
            case Head.REGRESSION | Head.CHOICE:
                return SequenceClassifier(self.config, 1, self.pooler)
            case Head.TAGGING:
                return TokenClassifier(self.config, len(self.labels))
            case Head.QUESTION_ANSWERING:
                return TokenClassifier(self.config, 2, dropout=False)

    @property
    def reads_first_position_only(self) -> bool:
        """Whether no hidden state matters but that of a sequence's first position."""
        return self.head in _OF_SEQUENCES and self.pooler

    @property
    def reads_mean(self) -> bool:
        """Whether the head reads the mean of a sequence's hidden states."""
        return self.head in _OF_SEQUENCES and not self.pooler

    def initialise(self, key: jax.Array) -> Any:
        """Random parameters, annotated with logical axes."""
        ids_11 = jnp.zeros((1, 1), jnp.int32)
        inputs = [ids_11, ids_11, jnp.ones((1,), jnp.int32)]
        if self.head is Head.PRETRAINING:
            inputs.append(ids_11)  # masked positions
        return self.model().init(key, *inputs, deterministic=True)["params"]

    def to_json(self) -> str:
        """The description as JSON, without what was of the run alone (`RUN_FIELDS`)."""
        fields = dataclasses.asdict(self)
        for name in RUN_FIELDS:
            del fields["config"][name]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "ModelDescription":
        """Reads what ``to_json`` wrote.

        Raises:
          UserError: it is no description.
        """
        try:
            fields = json.loads(text)
            return cls(
                **fields
                | {
                    "config": BertConfig(**fields["config"]),
                    "head": Head(fields["head"]),
                    "labels": tuple(fields["labels"]),
                    "pooling": Pooling(fields["pooling"]),
                }
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"the description of a model cannot be read: {error}") from None
