"""Documents from the text of a TFDS data set (``wikipedia/20230601.en``), without TensorFlow."""

import dataclasses
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from bert_jax.data.documents import Passage, Tally, whole_document
from bert_jax.errors import UserError, first_line

PREFIX = "tfds:"
_READ_AT_ONCE = 64
_ROWS_OF_PART = 20_000
# TFDS knows its older data sets only once the module of their kind is imported.
_KINDS = ("question_answering", "summarization", "text", "translate")


@dataclass(frozen=True)
class TfdsText:
    """One split of a TFDS data set; a row is a document.

    Attributes:
      name: the input as the user typed it: ``tfds:NAME``, ``tfds:NAME/CONFIG``.
      split: the split, in TFDS's notation.
      text_field: the feature that holds the text; None takes ``text``, or the only text feature.
      data_dir: where TFDS keeps its data; None is TFDS's own default.
      rows: which rows of the split, [start, end); None reads all.
    """

    name: str
    split: str = "train"
    text_field: str | None = None
    data_dir: str | None = None
    rows: tuple[int, int] | None = None

    @property
    def disk_bytes(self) -> None:
        """Not known before the data set is read."""
        return None

    def passages(self, tally: Tally) -> Iterator[Passage]:
        """The split's documents; prepares the data set first where that was not yet done.

        Raises:
          UserError: TFDS does not know the data set or cannot fetch it, or it lacks the split or
            the text.
        """
        source, field = self._open()
        first, end = self.rows or (0, len(source))
        for start in range(first, end, _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, end))
            for row in source.__getitems__(rows):
                # Only the text is decoded: a row may have pictures, too.
                features = tf_example_pb2.Example.FromString(row).features.feature
                text = features[field].bytes_list.value[0]
                tally.disk_bytes += len(text)
                yield from whole_document(text.decode("utf-8", errors="replace"))

    def parts(self) -> list["TfdsText"]:
        """The split in ranges of rows.

        Raises:
          UserError: as ``passages`` does.
        """
        source, _ = self._open()
        return [
            dataclasses.replace(self, rows=(start, min(start + _ROWS_OF_PART, len(source))))
            for start in range(0, len(source), _ROWS_OF_PART)
        ]

    def _open(self) -> tuple[Any, str]:
        """The rows, serialized, and the feature that is their text."""
        data_set = self.name.removeprefix(PREFIX)
        builder = prepared_builder(data_set, self.data_dir)
        field = _text_feature(builder, self.text_field)
        try:
            source = builder.as_data_source(
                self.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{data_set} has no split {self.split!r} ({first_line(error)}); choose one of "
                f"{', '.join(builder.info.splits)} with --tfds_split"
            ) from None
        return source, field


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


def _text_feature(builder: tfds.core.DatasetBuilder, field: str | None) -> str:
    features = builder.info.features
    texts: list[str] = [
        name
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Text)
        and np.dtype(feature.np_dtype) == np.dtype(object)
    ]
    if field is None and "text" not in texts and len(texts) == 1:
        return texts[0]
    chosen = field or "text"
    if chosen not in texts:
        raise UserError(
            f"{builder.info.full_name} has no text feature {chosen!r}; name one of "
            f"{', '.join(texts) or 'none: it holds no text'} with --text_field"
        )
    return chosen
