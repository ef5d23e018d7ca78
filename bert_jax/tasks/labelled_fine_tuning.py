"""What the tasks share that learn from tables of texts with a label in each row."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax.data.rows import Rows
from bert_jax.data.tables import Table, concatenate, texts_of
from bert_jax.data.text_rows import make_text_rows
from bert_jax.errors import UserError
from bert_jax.models.description import Pooling
from bert_jax.tasks.base import NEW, Batch, Start
from bert_jax.tasks.enumerations import member
from bert_jax.tasks.fine_tuning import FineTuning
from bert_jax.tasks.labelled_texts import LabelledRows, read_splits
from bert_jax.training.metrics import Ratio


class LabelledFineTuning(FineTuning):
    """A task on texts with labels, scored on each validation table.

    Attributes:
      needs_labels: whether nothing can be learnt or scored without them.
      pooling: what is read of a text.
    """

    losses: Mapping[str, float] = {"loss": 1.0}
    needs_labels = True

    def __init__(self, config: ml_collections.ConfigDict, start: Start = NEW):
        # Runs from before have none.
        self.pooling = member(Pooling, config.get("pooling", Pooling.CLS), "pooling")
        super().__init__(config, start)

    def read(self, split: str) -> LabelledRows:
        """The rows of a split; the training rows' labels are all that there are."""
        data = self.config.data
        tables = read_splits(data, split, self.columns(split), needs_labels=self.needs_labels)
        table = concatenate(tables)
        if split == "train":
            self.prepare_labels(table)
        else:
            self._indices = table.columns.get(self.config.data.index)
            self._part_names = _part_names(str(data.validation), len(tables))
            self._part_ends = np.cumsum([len(part) for part in tables]).tolist()
        targets, weights = self.targets(table)
        if split == "validation":
            self._truth, self._known = targets, weights > 0
            if self._start.trains and self.needs_labels and not self._known.any():
                raise UserError(
                    f"the validation rows of {data.validation} have no labels in the column "
                    f"{data.label!r}; give others with --config.data.validation"
                )
        return LabelledRows(self.texts(table), targets, weights)

    def columns(self, split: str) -> Sequence[str]:
        """The columns that every row of a split must have, besides the label."""
        data = self.config.data
        return [column for column in (data.text, data.second_text) if column]

    def texts(self, table: Table) -> Rows:
        """The tokens of a table's rows."""
        data = self.config.data
        second = None
        if data.second_text:
            self.encoder.check_pairs()
            second = texts_of(table, data.second_text)
        return make_text_rows(
            texts_of(table, data.text), second, self.tokenizer, max_length=data.max_length
        )

    def prepare_labels(self, table: Table) -> None:
        """Takes note of the labels of the training table."""

    @abc.abstractmethod
    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """The targets of a table's rows, and float32 [N], 0 where one is hidden."""

    @abc.abstractmethod
    def score_labels(
        self, truth: np.ndarray, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """The metrics of labelled rows from their targets and the model's outputs for them."""

    def outputs(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """The model's outputs: logits, or the value."""
        return {"scores": self.apply(params, batch)}

    def indices(self) -> Sequence[Any] | None:
        """The column ``data.index`` of the validation rows, where they have one."""
        return self._indices

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The metrics of each validation table; all but the first's have its name in front."""
        scores: dict[str, float] = {}
        for name, rows in self.parts():
            part = self.score_rows(rows, outputs)
            scores |= {f"{name}{metric}": value for metric, value in part.items()}
        return scores

    def score_rows(self, rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The metrics of some validation rows, int64 [n], from the outputs of all of them."""
        known = rows[self._known[rows]]
        if not known.size:
            return {}
        return self.score_labels(
            self._truth[known], {name: array[known] for name, array in outputs.items()}
        )

    def parts(self) -> Iterator[tuple[str, np.ndarray]]:
        """The prefix of each validation table's metrics, and its rows: int64 [n]."""
        first = 0
        for name, end in zip(self._part_names, self._part_ends, strict=True):
            yield name, np.arange(first, end)
            first = end


def _part_names(setting: str, parts: int) -> list[str]:
    paths = [path.strip() for path in setting.split(",")][1:parts]
    stems = [path.rpartition("/")[2].partition(".")[0] for path in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    return ["", *(f"{name}_" for name in names)]


def token_sum(batch: Batch) -> Ratio:
    """The real tokens of a batch, for the speed."""
    return Ratio(jnp.sum(batch["lengths"]).astype(jnp.float32), jnp.ones(()))
