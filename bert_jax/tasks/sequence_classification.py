"""Classes, labels or values of texts and pairs of texts.

Shapes: B batch, N examples, T targets (classes or labels).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax.data.tables import Table, concatenate, texts_of
from bert_jax.data.text_rows import make_text_rows
from bert_jax.errors import UserError
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.losses import correct_sum, cross_entropy_sum
from bert_jax.tasks.base import NEW, Batch, Start
from bert_jax.tasks.fine_tuning import FineTuning, start_description
from bert_jax.tasks.labelled_texts import (
    LabelledRows,
    class_numbers,
    find_names,
    label_sets,
    read_splits,
    values_of,
)
from bert_jax.tasks.sequence_scores import (
    confusion_matrix,
    score_classes,
    score_labels,
    score_values,
)
from bert_jax.training.metrics import Ratio, Sums

_LOWER_IS_BETTER = ("loss", "mse")
# A label is predicted where its probability is above one half.
_THRESHOLD = 0.5


class _Sequences(FineTuning):
    """What the three kinds share: the data, and scores by validation table.

    Attributes:
      labels: names of the classes or labels.
    """

    losses: Mapping[str, float] = {"loss": 1.0}
    labels: tuple[str, ...] = ()

    def __init__(self, config: ml_collections.ConfigDict, start: Start = NEW):
        described = start_description(start)
        if not start.trains and described is not None:
            self.labels = described.labels
        super().__init__(config, start)
        self.selection = self.config.selection
        self.higher_is_better = self.selection not in _LOWER_IS_BETTER

    def read(self, split: str) -> LabelledRows:
        """The rows of a split; the training rows' labels are all that there are."""
        data = self.config.data
        tables = read_splits(data, split)
        table = concatenate(tables)
        if split == "train":
            self.prepare_labels(table)
        else:
            self._indices = table.columns.get(data.get("index"))
            self._part_names = _part_names(str(data.validation), len(tables))
            self._part_ends = np.cumsum([len(part) for part in tables]).tolist()
        targets, weights = self.targets(table)
        if split == "validation":
            self._truth, self._known = targets, weights > 0
            if self._start.trains and not self._known.any():
                raise UserError(
                    f"the validation rows of {data.validation} have no labels in the column "
                    f"{data.label!r}; give others with --config.data.validation"
                )
        second = texts_of(table, data.second_text) if data.second_text else None
        texts = make_text_rows(
            texts_of(table, data.text), second, self.tokenizer, max_length=data.max_length
        )
        return LabelledRows(texts, targets, weights)

    def prepare_labels(self, table: Table) -> None:
        """Takes note of the labels of the training table."""

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """The targets of a table's rows, and float32 [N], 0 where one is hidden."""
        raise NotImplementedError

    def score_part(self, truth: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """The metrics of some rows from their targets and the model's outputs [N, T]."""
        raise NotImplementedError

    def indices(self) -> Sequence[Any] | None:
        """The column ``data.index`` of the validation rows, where they have one."""
        return self._indices

    def outputs(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """The model's outputs: logits, or the value."""
        return {"scores": self.apply(params, batch)}

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The metrics of each validation table; all but the first's have its name in front."""
        scores: dict[str, float] = {}
        start = 0
        for name, end in zip(self._part_names, self._part_ends, strict=True):
            rows = start + np.flatnonzero(self._known[start:end])
            if rows.size:
                part = self.score_part(self._truth[rows], outputs["scores"][rows])
                scores |= {f"{name}{metric}": value for metric, value in part.items()}
            start = end
        return scores


def _part_names(setting: str, parts: int) -> list[str]:
    names = [name.strip().rpartition("/")[2].partition(".")[0] for name in setting.split(",")]
    return [""] + [f"{name}_" for name in names[1:parts]]


class Classification(_Sequences):
    """One class of each text."""

    def prepare_labels(self, table: Table) -> None:
        """The classes are those that the config gives, or those that training has."""
        data = self.config.data
        self.labels = find_names(table, data.label, data.labels)
        if len(self.labels) < 2:
            raise UserError(
                f"the training rows have one label only, {self.labels[0]!r} in the column "
                f"{data.label!r}; choose another column with --config.data.label"
            )

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """int32 [N] classes."""
        return class_numbers(table, self.config.data.label, self.labels)

    def read(self, split: str) -> LabelledRows:
        """The rows of a split; the weights of training rows follow their classes."""
        rows = super().read(split)
        if split == "train":
            used = rows.targets[rows.weights > 0]
            self._class_weights = _class_weights(self.config.class_weights, used, len(self.labels))
        return rows

    def describe(self) -> ModelDescription:
        """BERT's classifier of sequences."""
        return ModelDescription(
            self.encoder,
            Head.CLASSIFICATION,
            self.labels,
            max_length=self.config.data.max_length,
        )

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Cross-entropy, in training weighted by class, and accuracy."""
        logits_BT = self.apply(params, batch, dropout_key)
        weights_B = batch["weights"] * batch["example_weights"]
        loss_weights_B = weights_B
        if self._start.trains:
            loss_weights_B = weights_B * jnp.asarray(self._class_weights)[batch["targets"]]
        loss = cross_entropy_sum(logits_BT, batch["targets"], loss_weights_B)
        return {
            "loss": Ratio(*loss),
            "accuracy": Ratio(*correct_sum(logits_BT, batch["targets"], weights_B)),
            "tokens": token_sum(batch),
        }

    def score_part(self, truth: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """Accuracy, Matthews' correlation, precision, recall and F1."""
        return score_classes(truth, outputs.argmax(axis=-1), len(self.labels))

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The confusion matrix."""
        if not self._known.any():
            return {}
        predicted = self.in_order_of_data(outputs)["scores"].argmax(axis=-1)
        matrix = confusion_matrix(
            self._truth[self._known], predicted[self._known], len(self.labels)
        )
        return {"labels": list(self.labels), "confusion_matrix": matrix}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Each row's class and the probabilities of all."""
        logits_NT = self.in_order_of_data(outputs)["scores"]
        probabilities_NT = jax.device_get(jax.nn.softmax(logits_NT, axis=-1))
        numbered = self.config.data.submission == "number"
        return [
            {
                "prediction": int(best) if numbered else self.labels[best],
                "probabilities": dict(zip(self.labels, row.tolist(), strict=True)),
            }
            for best, row in zip(logits_NT.argmax(axis=-1).tolist(), probabilities_NT, strict=True)
        ]


class MultiLabelClassification(_Sequences):
    """Any number of labels of each text."""

    def prepare_labels(self, table: Table) -> None:
        """The labels are those that the config gives, or those that training has."""
        data = self.config.data
        found = label_sets(table, data.label, data.label_separator)
        names = {label for labels in found for label in labels}
        self.labels = tuple(data.labels) or tuple(sorted(names))

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N, T], 1 where a row has a label."""
        data = self.config.data
        targets_NT = np.zeros((len(table), len(self.labels)), np.float32)
        if data.label not in table.columns:
            return targets_NT, np.zeros(len(table), np.float32)
        number_of = {name: number for number, name in enumerate(self.labels)}
        for row, labels in enumerate(label_sets(table, data.label, data.label_separator)):
            for label in labels:
                if label not in number_of:
                    raise UserError(
                        f"{table.places[row]} has the label {label!r}, which training never saw; "
                        f"the labels are {', '.join(self.labels)}"
                    )
                targets_NT[row, number_of[label]] = 1.0
        return targets_NT, np.ones(len(table), np.float32)

    def describe(self) -> ModelDescription:
        """BERT's classifier of sequences, with a sigmoid for each label."""
        return ModelDescription(
            self.encoder, Head.MULTI_LABEL, self.labels, max_length=self.config.data.max_length
        )

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Binary cross-entropy, averaged over the labels."""
        logits_BT = self.apply(params, batch, dropout_key)
        weights_B = batch["weights"] * batch["example_weights"]
        losses_BT = jax.nn.softplus(logits_BT) - logits_BT * batch["targets"]
        total = jnp.sum(weights_B * jnp.mean(losses_BT, axis=-1))
        return {"loss": Ratio(total, jnp.sum(weights_B)), "tokens": token_sum(batch)}

    def score_part(self, truth: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """Accuracy of whole sets, precision, recall and F1."""
        return score_labels(truth.astype(int), (_sigmoid(outputs) > _THRESHOLD).astype(int))

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Each row's labels and the probabilities of all."""
        probabilities_NT = _sigmoid(self.in_order_of_data(outputs)["scores"])
        return [
            {
                "prediction": [self.labels[i] for i in np.flatnonzero(row > _THRESHOLD)],
                "probabilities": dict(zip(self.labels, row.tolist(), strict=True)),
            }
            for row in probabilities_NT
        ]


class Regression(_Sequences):
    """A number for each text."""

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N] values."""
        return values_of(table, self.config.data.label)

    def describe(self) -> ModelDescription:
        """BERT's classifier of sequences, with one output."""
        return ModelDescription(
            self.encoder, Head.REGRESSION, max_length=self.config.data.max_length
        )

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """The squared error."""
        values_B = self.apply(params, batch, dropout_key)[:, 0]
        weights_B = batch["weights"] * batch["example_weights"]
        total = jnp.sum(weights_B * jnp.square(values_B - batch["targets"]))
        return {"loss": Ratio(total, jnp.sum(weights_B)), "tokens": token_sum(batch)}

    def score_part(self, truth: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """Pearson's and Spearman's correlation, mean squared error."""
        return score_values(truth, outputs[:, 0])

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Each row's value."""
        values_N = self.in_order_of_data(outputs)["scores"][:, 0]
        return [{"prediction": value} for value in values_N.tolist()]


def token_sum(batch: Batch) -> Ratio:
    """The real tokens of a batch, for the speed."""
    return Ratio(jnp.sum(batch["lengths"]).astype(jnp.float32), jnp.ones(()))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = jax.device_get(jax.nn.sigmoid(logits))
    return probabilities


def _class_weights(setting: str | Sequence[float], classes: np.ndarray, count: int) -> np.ndarray:
    """What each class counts in the loss: float32 [T]; 1 each where nothing is set."""
    if setting == "balanced":
        found = np.bincount(classes, minlength=count)
        return (len(classes) / (count * np.maximum(found, 1))).astype(np.float32)
    if not setting:
        return np.ones(count, np.float32)
    if isinstance(setting, str) or len(setting) != count:
        raise UserError(
            f"class_weights={setting!r} must be 'balanced' or one number for each of the {count} "
            "classes"
        )
    return np.asarray(setting, np.float32)
