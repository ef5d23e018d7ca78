"""Texts and pairs of texts with labels: reading them, and turning labels into numbers."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from bert_jax.data.rows import Rows
from bert_jax.data.tables import Table, concatenate, read_table, read_tfds_table
from bert_jax.errors import UserError
from bert_jax.tasks.splits import choose_apart, read_parts


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """Rows of text with a target each.

    Attributes:
      texts: the rows' tokens.
      targets: what is learnt of each: int32 [N] classes, float32 [N] values or [N, T] labels.
      weights: float32 [N], what each counts in the loss; 0 where there is no label.
    """

    texts: Rows
    targets: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row: int64 [N]."""
        return self.texts.lengths

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """The texts' arrays, with ``targets`` and ``weights``."""
        return self.texts.rows(numbers, max_length) | {
            "targets": self.targets[numbers],
            "weights": self.weights[numbers],
        }


def read_splits(
    data: ml_collections.ConfigDict,
    split: str,
    columns: Sequence[str],
    *,
    needs_labels: bool = True,
) -> list[Table]:
    """The tables of a split; validation may have several, as MNLI does, separated by commas.

    Without a validation table, ``validation_share`` of the training rows, chosen at random, is kept
    apart.

    Args:
      data: ``tfds``, ``train``, ``validation``, ``validation_share``, and the columns
        ``label`` and ``index``.
      split: ``train`` or ``validation``.
      columns: the columns that every row must have, besides the label.
      needs_labels: whether training rows must have labels too.

    Raises:
      UserError: something cannot be read.
    """
    # A test split's labels may be hidden; what is to be learnt from needs them.
    if split == "train" and needs_labels:
        needed, optional = [*columns, data.label], []
    else:
        needed, optional = list(columns), [data.label]
    if data.index:
        optional = [*optional, data.index]

    def read(name: str) -> Table:
        if data.tfds:
            directory = data.data_dir or None
            return read_tfds_table(data.tfds, name, needed, optional, directory)
        return read_table(name, needed, optional)

    return read_parts(data, split, read, concatenate, _divide)


def all_labels(data: ml_collections.ConfigDict, table: Table) -> Table:
    """The labels of the training rows, and of those that were kept apart for validation.

    A label may be so rare that every row which has it is among the latter. Where the config names
    the labels, none need be found.

    Args:
      data: as for ``read_splits``.
      table: the training rows.

    Raises:
      UserError: something cannot be read.
    """
    if data.labels or data.validation or not data.validation_share:
        return table
    undivided = data.copy_and_resolve_references()
    undivided.validation_share = 0.0
    return concatenate(read_splits(undivided, "train", []))


def _divide(table: Table, share: float) -> tuple[Table, Table]:
    """Training and validation rows."""
    apart = choose_apart(len(table), share)

    def take(chosen: np.ndarray) -> Table:
        rows = np.flatnonzero(chosen).tolist()
        return Table(
            [table.places[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in table.columns.items()},
            table.class_names,
        )

    return take(~apart), take(apart)


# What stands in a table where a row has no label.
_NO_LABEL = (None, "")
_LARGEST = float(np.finfo(np.float32).max)


def class_name(value: Any) -> str:
    """The name of a class that JSON or CSV gives as a text, a number or a truth value."""
    return value if isinstance(value, str) else str(value)


def find_names(found: Iterable[Any], named: Sequence[str], given: Sequence[Any]) -> tuple[str, ...]:
    """The names of the classes: those given, those that TFDS has, or those that occur.

    Args:
      found: labels of all rows; those that stand for no label are left out.
      named: the names that TFDS has for their numbers, if it has any.
      given: the names that the config gives, if it does.
    """
    if given or named:
        return tuple(map(class_name, given or named))
    names = {class_name(value) for value in found if value not in _NO_LABEL}
    return tuple(sorted(names, key=lambda name: (not _is_number(name), _sort_key(name))))


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _sort_key(name: str) -> tuple[int, str]:
    return (int(name) if _is_number(name) else 0, name)


def _own_name(value: Any, named: Sequence[str]) -> str:
    """The name of a label, which in TFDS is the number of one."""
    is_named = isinstance(value, int) and 0 <= value < len(named)
    return named[value] if is_named else class_name(value)


def class_numbers(table: Table, column: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The classes of a table's rows: int32 [N], and float32 [N], 0 where the label is hidden.

    A label is a name, or where no name is a number, the number of one. TFDS's numbers are those of
    its own names. Nothing hides a label, and -1, as TFDS has it, where that is no name.

    Raises:
      UserError: a label is none of the names.
    """
    if column not in table.columns:
        return np.zeros(len(table), np.int32), np.zeros(len(table), np.float32)
    number_of: Mapping[str, int] = {name: number for number, name in enumerate(names)}
    # Of the names 1, 2 and 4, the label 3 is no index: it is a class that was never seen.
    indices = range(0 if any(map(_is_number, names)) else len(names))
    named = table.class_names.get(column, ())
    numbers = np.zeros(len(table), np.int32)
    known = np.ones(len(table), np.float32)
    for row, value in enumerate(table.columns[column]):
        name = _own_name(value, named)
        if value in _NO_LABEL or (name == "-1" and name not in number_of):
            known[row] = 0.0
        elif name in number_of:
            numbers[row] = number_of[name]
        elif isinstance(value, int) and value in indices:
            numbers[row] = value
        else:
            raise UserError(
                f"{table.places[row]} has the label {value!r}, which training never saw; the "
                f"labels are {', '.join(names)}"
            )
    return numbers, known


def label_sets(table: Table, column: str, separator: str) -> list[list[str] | None]:
    """The labels of each row: a list of them, or a text with a separator between labels.

    None where they are hidden, as by JSON's ``null``. An empty text or list is a row that has none
    of the labels.

    Raises:
      UserError: a row has neither.
    """
    named = table.class_names.get(column, ())
    sets: list[list[str] | None] = []
    for place, value in zip(table.places, table.columns[column], strict=True):
        if isinstance(value, str):
            value = [label.strip() for label in value.split(separator) if label.strip()]
        if not isinstance(value, list | None):
            raise UserError(
                f"{place} has {value!r} in the column {column!r}, where a list of labels should "
                "stand"
            )
        labels = [_own_name(label, named) for label in value or () if label not in _NO_LABEL]
        sets.append(None if value is None else labels)
    return sets


def values_of(
    table: Table, column: str, hidden: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers to predict: float32 [N], and float32 [N], 0 where there is none.

    Args:
      table: the rows.
      column: the numbers' column; without it all are hidden.
      hidden: the number that stands for a hidden one, if the data have any.

    Raises:
      UserError: a value is no number.
    """
    if column not in table.columns:
        return np.zeros(len(table), np.float32), np.zeros(len(table), np.float32)
    values = np.zeros(len(table), np.float32)
    known = np.ones(len(table), np.float32)
    for row, value in enumerate(table.columns[column]):
        if value in _NO_LABEL:
            known[row] = 0.0
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if number == hidden:
            known[row] = 0.0
            continue
        if not abs(number) <= _LARGEST:  # NaN is not either
            raise UserError(
                f"{table.places[row]} has {value!r} in the column {column!r}, where a number "
                "should stand"
            )
        values[row] = number
    return values, known
