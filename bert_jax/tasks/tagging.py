"""A tag for every word: names, places and other entities of a text.

Shapes: B batch, L length, T tags, N windows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.packing import OF_TOKENS
from bert_jax.data.tag_windows import TagWindows, make_tag_windows
from bert_jax.data.tagged_sentences import (
    OUTSIDE,
    Sentence,
    label_names,
    read_sentences,
    read_tfds_sentences,
)
from bert_jax.errors import UserError
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.losses import correct_sum, cross_entropy_sum
from bert_jax.tasks.base import Batch
from bert_jax.tasks.fine_tuning import FineTuning
from bert_jax.tasks.labelled_fine_tuning import token_sum
from bert_jax.tasks.splits import read_examples
from bert_jax.tasks.tag_scores import score_entities
from bert_jax.training.metrics import Ratio, Sums


class Tagging(FineTuning):
    """The tags of words, learnt and predicted at each word's first token."""

    losses: Mapping[str, float] = {"loss": 1.0}
    can_pack = True
    of_tokens = (*OF_TOKENS, "labels", "label_weights")

    def read(self, split: str) -> TagWindows:
        """The windows of a split's sentences."""
        data = self.config.data

        def read(name: str) -> list[Sentence]:
            if not data.tfds:
                path = Path(name).expanduser()
                return read_sentences(
                    path, tokens=data.tokens, tags=data.tags, names=data.tag_names
                )
            columns = {key: data[key] for key in ("tokens", "tags") if data[key] is not None}
            return read_tfds_sentences(
                data.tfds, name, names=data.tag_names, data_dir=data.data_dir or None, **columns
            )

        # Sentences alike stand together, so that none is both learnt and validated on.
        sentences = read_examples(data, split, read, lambda sentence: sentence.words)
        if split == "train":
            sentences = [sentence for sentence in sentences if sentence.words]
            self.labels = label_names(sentences)
            if self.labels == (OUTSIDE,):
                raise UserError(
                    f"every word of {data.train} has the tag {OUTSIDE}, so there is nothing to "
                    "learn; choose the column of the tags with --config.data.tags"
                )
        else:
            self._sentences = sentences
        windows = make_tag_windows(
            sentences, self.labels, self.tokenizer, max_length=data.max_length
        )
        if split == "validation":
            self._windows = windows
        return windows

    def describe(self) -> ModelDescription:
        """BERT's classifier of tokens."""
        return ModelDescription(
            self.encoder, Head.TAGGING, self.labels, max_length=self.config.data.max_length
        )

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Cross-entropy and accuracy, word by word; a tag that training never saw is left out."""
        logits_BLT = self.apply(params, batch, dropout_key)
        weights_BL = batch["label_weights"]  # an example that does not count has no label
        return {
            "loss": Ratio(*cross_entropy_sum(logits_BLT, batch["labels"], weights_BL)),
            "accuracy": Ratio(*correct_sum(logits_BLT, batch["labels"], weights_BL)),
            "tokens": token_sum(batch),
        }

    def outputs(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """The most probable label of each column."""
        return {"labels": jnp.argmax(self.apply(params, batch), axis=-1)}

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Precision, recall and F1 of entities."""
        overall, _ = score_entities(self._expected, self._tags(outputs))
        scores = overall._asdict()
        del scores["support"]
        return scores

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The scores of each type of entity, with how many of it there are."""
        tags = self._tags(self.in_order_of_data(outputs))
        _, by_type = score_entities(self._expected, tags)
        return {"entities": {name: scores._asdict() for name, scores in by_type.items()}}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Each sentence's words and their tags."""
        tags = self._tags(self.in_order_of_data(outputs))
        return [
            {"words": list(sentence.words), "prediction": predicted}
            for sentence, predicted in zip(self._sentences, tags, strict=True)
        ]

    @property
    def _expected(self) -> list[tuple[str, ...]]:
        return [sentence.tags for sentence in self._sentences]

    def _tags(self, outputs: Mapping[str, np.ndarray]) -> list[list[str]]:
        """The predicted tags of every sentence, from outputs in the order of the data."""
        return self._windows.tags(list(outputs["labels"]), self.labels)
