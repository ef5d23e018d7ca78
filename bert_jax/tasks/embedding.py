"""Sentence embeddings, learnt from pairs of texts that one encoder reads side by side.

Shapes: N examples, B batch, K texts of a row, L length, D width.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax.data.tables import Table, texts_of
from bert_jax.data.text_groups import TextGroups, group_texts
from bert_jax.errors import UserError
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.pooling import sentence_embeddings
from bert_jax.models.ranking_loss import ranking_loss_sum
from bert_jax.tasks.base import NEW, Batch, Start
from bert_jax.tasks.enumerations import member
from bert_jax.tasks.fine_tuning import apply_model, one_text_a_row
from bert_jax.tasks.labelled_fine_tuning import LabelledFineTuning, token_sum
from bert_jax.tasks.labelled_texts import values_of
from bert_jax.tasks.retrieval_scores import score_retrieval
from bert_jax.tasks.sequence_scores import score_values
from bert_jax.training.metrics import Ratio, Sums


class Objective(enum.StrEnum):
    """What is learnt of a pair."""

    RANKING = "ranking"  # each text finds its partner among those of the batch
    SIMILARITY = "similarity"  # the cosine is the label


@dataclasses.dataclass(frozen=True)
class PairTexts:
    """Pairs of texts, or triples with a hard negative.

    Attributes:
      groups: their tokens.
      numbers: int32 [N, K]; equal texts have equal numbers.
    """

    groups: TextGroups
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row's longest text: int64 [N]."""
        return self.groups.lengths

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """The tokens' arrays, with ``text_numbers``."""
        return self.groups.rows(numbers, max_length) | {"text_numbers": self.numbers[numbers]}


class Embedding(LabelledFineTuning):
    """Embeddings whose cosine says how alike two texts are.

    With ``data.objective=similarity`` the squared error of the cosine is minimised, of labels that
    ``data.label_range`` maps to 0 to 1 (Reimers and Gurevych, arXiv:1908.10084, section 3); with
    ``ranking``, the loss of ``ranking_loss_sum``. Validation rows with labels are scored by the
    correlation of cosine and label, others by retrieval.
    """

    def __init__(self, config: ml_collections.ConfigDict, start: Start = NEW):
        data = config.data
        member(Objective, data.objective, "data.objective")
        self.needs_labels = data.objective == Objective.SIMILARITY
        if not self.needs_labels and config.accumulation_steps > 1:
            raise UserError(
                f"accumulation_steps={config.accumulation_steps} would split the batch in which "
                "each text must find its partner, which changes what is learnt; set it to 1 and "
                "lower batch_size, or use data.objective=similarity"
            )
        if not self.needs_labels and config.scale <= 0:
            raise UserError(f"scale={config.scale} must be above 0")
        if self.needs_labels and data.negative:
            raise UserError(
                f"data.negative={data.negative!r} has no use with data.objective=similarity; leave "
                "it out, or set data.objective=ranking"
            )
        super().__init__(config, start)
        if not self.selection:
            labelled = self._known.any()
            self.selection = "spearman" if labelled else "mean_reciprocal_rank"

    def columns(self, split: str) -> Sequence[str]:
        """The texts; of validation rows without the hard negative."""
        data = self.config.data
        negative = [data.negative] if data.negative and split == "train" else []
        return [data.text, data.second_text, *negative]

    def texts(self, table: Table) -> PairTexts:
        """The tokens of a table's pairs, or triples."""
        data = self.config.data
        columns = [
            texts_of(table, name)
            for name in (data.text, data.second_text, data.negative)
            if name in table.columns
        ]
        texts = [text for row in zip(*columns, strict=True) for text in row]
        groups = group_texts(
            texts, None, [len(columns)] * len(table), self.tokenizer, max_length=data.max_length
        )
        number_of: dict[str, int] = {}
        numbers = [number_of.setdefault(text, len(number_of)) for text in texts]
        return PairTexts(groups, np.array(numbers, np.int32).reshape(len(table), len(columns)))

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N], the cosines to learn; without that objective, the labels as they are."""
        data = self.config.data
        values_N, known_N = values_of(table, data.label, data.hidden_label)
        if not self.needs_labels:
            return values_N, known_N
        lowest, highest = data.label_range
        outside_N = (values_N < lowest) | (values_N > highest)
        if rows := np.flatnonzero(known_N * outside_N).tolist():
            raise UserError(
                f"{table.places[rows[0]]} has {values_N[rows[0]]:g} in the column {data.label!r}, "
                f"which is not from {lowest:g} to {highest:g}; set --config.data.label_range"
            )
        return (values_N - np.float32(lowest)) / np.float32(highest - lowest), known_N

    def describe(self) -> ModelDescription:
        """The bare encoder, with the config's pooling."""
        config = self.config
        return ModelDescription(
            self.encoder,
            Head.NONE,
            pooler=False,
            pooling=self.pooling,
            normalize=config.normalize,
            max_length=config.data.max_length,
        )

    def apply(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
        """Embeddings of length 1 of each row's texts: float32 [B, K, D]."""
        flat = one_text_a_row(batch)
        hidden, _ = apply_model(self.model, params, flat, dropout_key)
        embeddings = sentence_embeddings(hidden, flat["lengths"], self.pooling, normalize=True)
        return embeddings.reshape(*batch["lengths"].shape, -1)

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """The objective's loss.

        That of ranking depends on who else is in the batch; ``score`` gives the split's.
        """
        embeddings_BKD = self.apply(params, batch, dropout_key)
        if self.needs_labels:
            cosines_B = jnp.sum(embeddings_BKD[:, 0] * embeddings_BKD[:, 1], axis=-1)
            weights_B = batch["weights"] * batch["example_weights"]
            total = jnp.sum(weights_B * jnp.square(cosines_B - batch["targets"]))
            loss = Ratio(total, jnp.sum(weights_B))
        else:
            total, weight = ranking_loss_sum(
                embeddings_BKD,
                batch["text_numbers"],
                batch["example_weights"],
                scale=self.config.scale,
                symmetric=self.config.symmetric,
            )
            loss = Ratio(total, weight)
        return {"loss": loss, "tokens": token_sum(batch)}

    def outputs(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Embeddings of length 1, and the texts' numbers."""
        return {
            "embeddings": self.apply(params, batch),
            "text_numbers": batch["text_numbers"],
        }

    def score_rows(self, rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The metrics of some validation rows; those of ranking need no labels."""
        scores = super().score_rows(rows, outputs)
        if self.needs_labels:
            return scores
        ranked = outputs["embeddings"][rows], outputs["text_numbers"][rows]
        return score_retrieval(*ranked, self.config.scale) | scores

    def score_labels(
        self, truth: np.ndarray, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Correlations of the cosines with the labels."""
        correlations = score_values(truth, _cosines(outputs["embeddings"]))
        return {name: correlations[name] for name in ("pearson", "spearman")}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Each row's cosine."""
        cosines = _cosines(self.in_order_of_data(outputs)["embeddings"])
        return [{"prediction": cosine} for cosine in cosines.tolist()]


def _cosines(embeddings_N2D: np.ndarray) -> np.ndarray:
    cosines: np.ndarray = np.einsum("ND,ND->N", embeddings_N2D[:, 0], embeddings_N2D[:, 1])
    return cosines
