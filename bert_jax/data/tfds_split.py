"""TFDS data sets as they lie on the disk, row by row, without TensorFlow."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from bert_jax.errors import UserError, first_line

_READ_AT_ONCE = 64
# TFDS knows its older data sets only once the module of their kind is imported.
_KINDS = ("question_answering", "summarization", "text", "translate")


class TfdsSplit:
    """The rows of a split, not decoded.

    Args:
      builder: of the data set, prepared.
      split: the split, in TFDS's notation.

    Raises:
      UserError: there is no such split.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        try:
            self._source = builder.as_data_source(
                split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{builder.info.full_name} has no split {split!r} ({first_line(error)}); choose "
                f"one of {', '.join(builder.info.splits)}"
            ) from None

    def __len__(self) -> int:
        return len(self._source)

    def read(self, first: int, end: int) -> Iterator[Mapping[str, Any]]:
        """The features of the rows from ``first`` to before ``end``, by name, as TFDS wrote them.

        Args:
          first, end: numbers of rows.
        """
        for start in range(first, end, _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, end))
            for row in self._source.__getitems__(rows):
                yield tf_example_pb2.Example.FromString(row).features.feature


def prepared_builder(data_set: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Opens a TFDS data set (``NAME``, ``NAME/CONFIG``), which is fetched and prepared if need be.

    Raises:
      UserError: TFDS does not know it or cannot fetch it.
    """
    where = data_dir or tfds.core.constants.DATA_DIR
    for kind in _KINDS:
        importlib.import_module(f"tensorflow_datasets.{kind}")
    try:
        builder = tfds.builder(data_set, data_dir=data_dir, file_format="array_record")
    # A builder's own code runs here; whatever it raises, there is no such data set for us.
    except Exception as error:
        raise UserError(
            f"TFDS has no data set {data_set!r} that works here ({first_line(error)}); check the "
            "name in the catalogue at https://www.tensorflow.org/datasets"
        ) from error
    if builder.is_prepared():
        return builder
    try:
        builder.download_and_prepare(file_format="array_record")
    # Network, checksum, disk and missing-package failures come as many types, some of TFDS's own.
    except Exception as error:
        raise UserError(
            f"TFDS cannot fetch and prepare {data_set!r} in {where} ({first_line(error)}); "
            "check the network, or copy it from where it is prepared in the array_record format"
        ) from error
    return builder
