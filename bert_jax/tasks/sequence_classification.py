"""Classes, labels or values of texts and pairs of texts.

Shapes: B batch, N examples, T targets (classes or labels). In rows that several texts share, B are
the rows times the places in each, [rows, places].
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax.data.tables import Table
from bert_jax.errors import UserError
from bert_jax.models.description import Head, ModelDescription, Pooling
from bert_jax.models.losses import correct_sum, cross_entropy_sum
from bert_jax.tasks.base import NEW, Batch, Start
from bert_jax.tasks.enumerations import member
from bert_jax.tasks.labelled_fine_tuning import LabelledFineTuning, token_sum
from bert_jax.tasks.labelled_texts import (
    LabelledRows,
    all_labels,
    class_numbers,
    find_names,
    label_sets,
    values_of,
)
from bert_jax.tasks.sequence_scores import (
    confusion_matrix,
    score_classes,
    score_label_sets,
    score_values,
)
from bert_jax.training.metrics import Ratio, Sums

# A label is predicted where its probability is above one half.
THRESHOLD = 0.5


class Submission(enum.StrEnum):
    """How predictions say which class it is."""

    NAME = "name"
    NUMBER = "number"


class Classification(LabelledFineTuning):
    """One class of each text."""

    can_pack = True

    def __init__(self, config: ml_collections.ConfigDict, start: Start = NEW):
        self._submission = member(Submission, config.data.submission, "data.submission")
        super().__init__(config, start)

    def prepare_labels(self, table: Table) -> None:
        """The classes are those that the config gives, or those that training has."""
        data = self.config.data
        whole = all_labels(data, table)
        named = whole.class_names.get(data.label, ())
        self.labels = find_names(whole.columns.get(data.label, ()), named, data.labels)
        if len(self.labels) < 2:
            found = f"one label only, {self.labels[0]!r}" if self.labels else "no labels"
            raise UserError(
                f"the training rows have {found} in the column {data.label!r}; choose another "
                "column with --config.data.label"
            )

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """int32 [N] classes."""
        return class_numbers(table, self.config.data.label, self.labels)

    def read(self, split: str) -> LabelledRows:
        """The rows of a split; training rows count in the loss as their classes do."""
        rows = super().read(split)
        if split != "train":
            return rows
        used = rows.targets[rows.weights > 0]
        of_class = _class_weights(self.config.class_weights, used, len(self.labels))
        return dataclasses.replace(rows, weights=rows.weights * of_class[rows.targets])

    def describe(self) -> ModelDescription:
        """BERT's classifier of sequences."""
        return _describe(self, Head.CLASSIFICATION)

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Cross-entropy, in training weighted by class, and accuracy."""
        logits_BT = self.apply(params, batch, dropout_key)
        weights_B = batch["weights"] * batch["example_weights"]
        return {
            "loss": Ratio(*cross_entropy_sum(logits_BT, batch["targets"], weights_B)),
            "accuracy": Ratio(*correct_sum(logits_BT, batch["targets"], weights_B > 0)),
            "tokens": token_sum(batch),
        }

    def score_labels(
        self, truth: np.ndarray, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Accuracy, Matthews' correlation, precision, recall and F1."""
        return score_classes(truth, outputs["scores"].argmax(axis=-1), len(self.labels))

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
        predictions = class_predictions(self.in_order_of_data(outputs)["scores"], self.labels)
        if self._submission is Submission.NUMBER:
            for row in predictions:
                row["prediction"] = self.labels.index(row["prediction"])
        return predictions


class MultiLabelClassification(LabelledFineTuning):
    """Any number of labels of each text."""

    can_pack = True

    def prepare_labels(self, table: Table) -> None:
        """The labels are those that the config gives, or those that training has."""
        data = self.config.data
        if self.config.class_weights is not None:
            raise UserError(
                "class_weights are of classes, of which a text has one, and this task is "
                "multi_label; leave them out"
            )
        whole = all_labels(data, table)
        sets = label_sets(whole, data.label, data.label_separator)
        found = [label for labels in sets for label in labels or ()]
        self.labels = find_names(found, whole.class_names.get(data.label, ()), data.labels)
        if not self.labels:
            raise UserError(
                f"the training rows have no labels in the column {data.label!r}; choose another "
                "column with --config.data.label"
            )

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N, T], 1 where a row has a label."""
        data = self.config.data
        targets_NT = np.zeros((len(table), len(self.labels)), np.float32)
        known_N = np.zeros(len(table), np.float32)
        if data.label not in table.columns:
            return targets_NT, known_N
        number_of = {name: number for number, name in enumerate(self.labels)}
        for row, labels in enumerate(label_sets(table, data.label, data.label_separator)):
            known_N[row] = labels is not None
            for label in labels or ():
                if label not in number_of:
                    raise UserError(
                        f"{table.places[row]} has the label {label!r}, which training never saw; "
                        f"the labels are {', '.join(self.labels)}"
                    )
                targets_NT[row, number_of[label]] = 1.0
        return targets_NT, known_N

    def describe(self) -> ModelDescription:
        """BERT's classifier of sequences, with a sigmoid for each label."""
        return _describe(self, Head.MULTI_LABEL)

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Binary cross-entropy, averaged over the labels."""
        logits_BT = self.apply(params, batch, dropout_key)
        weights_B = batch["weights"] * batch["example_weights"]
        losses_BT = jax.nn.softplus(logits_BT) - logits_BT * batch["targets"]
        total = jnp.sum(weights_B * jnp.mean(losses_BT, axis=-1))
        return {"loss": Ratio(total, jnp.sum(weights_B)), "tokens": token_sum(batch)}

    def score_labels(
        self, truth: np.ndarray, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Accuracy of whole sets, precision, recall and F1."""
        predicted = _sigmoid(outputs["scores"]) > THRESHOLD
        return score_label_sets(truth.astype(int), predicted.astype(int))

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Each row's labels and the probabilities of all."""
        return label_predictions(self.in_order_of_data(outputs)["scores"], self.labels)


class Regression(LabelledFineTuning):
    """A number for each text."""

    can_pack = True

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N] values."""
        data = self.config.data
        return values_of(table, data.label, data.hidden_label)

    def describe(self) -> ModelDescription:
        """BERT's classifier of sequences, with one output."""
        return _describe(self, Head.REGRESSION)

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """The squared error."""
        values_B = self.apply(params, batch, dropout_key)[..., 0]
        weights_B = batch["weights"] * batch["example_weights"]
        total = jnp.sum(weights_B * jnp.square(values_B - batch["targets"]))
        return {"loss": Ratio(total, jnp.sum(weights_B)), "tokens": token_sum(batch)}

    def score_labels(
        self, truth: np.ndarray, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Pearson's and Spearman's correlation, mean squared error."""
        return score_values(truth, outputs["scores"][:, 0])

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Each row's value."""
        return value_predictions(self.in_order_of_data(outputs)["scores"])


def _describe(task: LabelledFineTuning, head: Head) -> ModelDescription:
    data = task.config.data
    return ModelDescription(
        task.encoder,
        head,
        task.labels,
        pooler=task.pooling is Pooling.CLS,
        max_length=data.max_length,
        pairs=bool(data.second_text),
    )


def class_predictions(logits_NT: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Each row's class and the probabilities of all."""
    probabilities_NT = jax.device_get(jax.nn.softmax(logits_NT, axis=-1))
    return [
        {
            "prediction": labels[int(row.argmax())],
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in probabilities_NT
    ]


def label_predictions(
    logits_NT: np.ndarray, labels: Sequence[str], threshold: float = THRESHOLD
) -> list[dict[str, Any]]:
    """Each row's labels, of a probability above the threshold, and the probabilities of all."""
    return [
        {
            "prediction": [labels[i] for i in np.flatnonzero(row > threshold).tolist()],
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in _sigmoid(logits_NT)
    ]


def value_predictions(values_N1: np.ndarray) -> list[dict[str, Any]]:
    """Each row's value."""
    return [{"prediction": value} for value in values_N1[:, 0].tolist()]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = jax.device_get(jax.nn.sigmoid(logits))
    return probabilities


def _class_weights(setting: Any, classes: np.ndarray, count: int) -> np.ndarray:
    """What each class counts in the loss: float32 [T]; 1 each where nothing is set."""
    if setting == "balanced":
        found = np.bincount(classes, minlength=count)
        return (len(classes) / (count * np.maximum(found, 1))).astype(np.float32)
    if setting is None:
        return np.ones(count, np.float32)
    try:
        weights = np.asarray(setting, np.float32)
    except (TypeError, ValueError):
        weights = np.zeros(0, np.float32)
    if weights.shape != (count,) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError(
            f"class_weights={setting!r} must be 'balanced', or one number from 0 up for each of "
            f"the {count} classes"
        )
    return weights
