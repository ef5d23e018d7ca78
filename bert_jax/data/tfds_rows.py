"""Rows of a TFDS data set (``squad/v2.0``, ``conll2003``), without TensorFlow."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from bert_jax.data.tfds_split import TfdsSplit, prepared_builder
from bert_jax.errors import UserError


class TfdsRows:
    """One split of a TFDS data set.

    Args:
      name: ``NAME`` or ``NAME/CONFIG``.
      split: the split, in TFDS's notation.
      data_dir: where TFDS keeps its data; None is TFDS's own default.

    Raises:
      UserError: TFDS does not know the data set, cannot fetch it, or it has no such split.
    """

    def __init__(self, name: str, split: str, data_dir: str | None = None):
        self._name = name
        builder = prepared_builder(name, data_dir)
        self._features = builder.info.features
        self._split = TfdsSplit(builder, split)

    def __len__(self) -> int:
        return len(self._split)

    def __contains__(self, column: str) -> bool:
        return self._feature(column) is not None

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names of a column's classes; none where it holds no classes."""
        feature = self._feature(column)
        return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) else ()

    def read(self, *columns: str) -> Iterator[list[list[Any]]]:
        """For each row, each column's values: always a list, of texts or of numbers.

        Args:
          columns: features; one inside another as ``answers/text``.

        Raises:
          UserError: there is no such column.
        """
        for column in columns:
            if column not in self:
                raise UserError(
                    f"{self._name} has no column {column!r}; its columns are "
                    f"{', '.join(self._features)}"
                )
        for features in self._split.read(0, len(self)):
            yield [_values(features[column]) for column in columns]

    def is_sequence(self, column: str) -> bool:
        """Whether each row has any number of values of a column."""
        path = self._path(column) or []
        return any(isinstance(feature, tfds.features.Sequence) for feature in path)

    def _feature(self, column: str) -> Any:
        """What a column holds, of a sequence what it is one of; None without such a column."""
        path = self._path(column)
        return None if path is None else _element(path[-1])

    def _path(self, column: str) -> list[Any] | None:
        """The features on the way to a column; None where there is no such column."""
        path: list[Any] = [self._features]
        for part in column.split("/"):
            feature = _element(path[-1])
            if not isinstance(feature, tfds.features.FeaturesDict) or part not in feature:
                return None
            path.append(feature[part])
        return path


def _element(feature: Any) -> Any:
    """What a sequence is a sequence of; the feature itself where it is none."""
    return feature.feature if isinstance(feature, tfds.features.Sequence) else feature


def _values(feature: Any) -> list[Any]:
    kind = feature.WhichOneof("kind")
    if kind is None:
        return []
    values = getattr(feature, kind).value
    return [value.decode("utf-8") for value in values] if kind == "bytes_list" else list(values)
