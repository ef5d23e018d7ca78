"""Documents from the text of a TFDS data set (``wikipedia/20230601.en``), without TensorFlow."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow_datasets as tfds

from bert_jax.data.documents import Passage, Tally, whole_document
from bert_jax.data.tfds_split import TfdsSplit, prepared_builder
from bert_jax.errors import UserError

PREFIX = "tfds:"
_ROWS_OF_PART = 20_000


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
        split, field = self._open()
        for features in split.read(*(self.rows or (0, len(split)))):
            # Only the text is decoded: a row may have pictures, too.
            text = features[field].bytes_list.value[0]
            tally.disk_bytes += len(text)
            yield from whole_document(text.decode("utf-8", errors="replace"))

    def parts(self) -> list["TfdsText"]:
        """The split in ranges of rows.

        Raises:
          UserError: as ``passages`` does.
        """
        split, _ = self._open()
        return [
            dataclasses.replace(self, rows=(start, min(start + _ROWS_OF_PART, len(split))))
            for start in range(0, len(split), _ROWS_OF_PART)
        ]

    def _open(self) -> tuple[TfdsSplit, str]:
        """The split, and the feature that is its text."""
        data_set = self.name.removeprefix(PREFIX)
        builder = prepared_builder(data_set, self.data_dir)
        field = _text_feature(builder, self.text_field)
        return TfdsSplit(builder, self.split), field


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
