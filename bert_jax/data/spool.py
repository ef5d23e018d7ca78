"""Packed records on disk, on their way into a corpus: written as they come, read shuffled.

TFDS's own shuffler keeps up to a gigabyte in memory and needs TensorFlow beyond that. Here each
record goes into one of 128 files by the leading bits of its key; a file at a time is read and
sorted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from bert_jax.data.chunks import Records, offsets_of, positions_of_runs
from bert_jax.data.smallest_hashes import SmallestHashes

_BUCKET_BITS = 7
BUCKETS = 1 << _BUCKET_BITS
_HEADER = np.dtype([("key", "<u8"), ("document_hash", "<u8"), ("length", "<u4")])
_WRITE_BUFFER_BYTES = 1 << 16


class KeyedRecords(NamedTuple):
    """Records with what decides their place.

    Attributes:
      records: the records, C of them.
      keys: uint64 [C]; records are read in the order of their keys.
      document_hashes: uint64 [C], the hash of each record's document.
    """

    records: Records
    keys: np.ndarray
    document_hashes: np.ndarray


class Spool:
    """A directory of bucket files, to be written.

    Args:
      directory: made here; the caller removes it.

    Attributes:
      bytes_written: the size of the records that were added.
      hashes: the smallest of their documents; one of too little text for a record is none of them.
    """

    def __init__(self, directory: Path):
        directory.mkdir()
        self._paths = [_bucket_file(directory, bucket) for bucket in range(BUCKETS)]
        self._files: list[BinaryIO] = []
        self.bytes_written = 0
        self.hashes = SmallestHashes()

    def __enter__(self) -> Self:
        for path in self._paths:
            self._files.append(path.open("wb", buffering=_WRITE_BUFFER_BYTES))
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.close()

    def add(self, keyed: KeyedRecords) -> None:
        """Appends records, in any order."""
        self.hashes.update(np.unique(keyed.document_hashes).tolist())
        keyed = _sorted(keyed)
        headers = np.empty(len(keyed.keys), _HEADER)
        headers["key"] = keyed.keys
        headers["document_hash"] = keyed.document_hashes
        headers["length"] = np.diff(keyed.records.offsets)
        buckets = keyed.keys >> np.uint64(64 - _BUCKET_BITS)
        bounds = np.searchsorted(buckets, np.arange(BUCKETS + 1, dtype=np.uint64))
        for bucket in np.flatnonzero(np.diff(bounds)):
            first, last = bounds[bucket], bounds[bucket + 1]
            elements = keyed.records.elements[
                keyed.records.offsets[first] : keyed.records.offsets[last]
            ]
            file = self._files[bucket]
            file.write((last - first).astype("<u8").tobytes())
            file.write(headers[first:last].tobytes())
            file.write(elements.tobytes())
            self.bytes_written += elements.nbytes


@dataclass(frozen=True)
class SpooledRecords:
    """What was written into one or more spools; picklable.

    Attributes:
      directories: the spools' directories, in any order.
      dtype: the element type of the records.
    """

    directories: tuple[Path, ...]
    dtype: np.dtype

    def read(self, bucket: int) -> KeyedRecords:
        """All records of one bucket, by rising key; buckets follow each other by key too."""
        headers, elements = [np.empty(0, _HEADER)], [np.empty(0, self.dtype)]
        for directory in self.directories:
            content = _bucket_file(directory, bucket).read_bytes()
            position = 0
            while position < len(content):
                count = int(np.frombuffer(content, "<u8", 1, position)[0])
                headers.append(np.frombuffer(content, _HEADER, count, position + 8))
                position += 8 + headers[-1].nbytes
                length = int(headers[-1]["length"].sum())
                elements.append(np.frombuffer(content, self.dtype, length, position))
                position += elements[-1].nbytes
        header = np.concatenate(headers)
        records = Records(np.concatenate(elements), offsets_of(header["length"]))
        return _sorted(KeyedRecords(records, header["key"], header["document_hash"]))


def _bucket_file(directory: Path, bucket: int) -> Path:
    return directory / f"{bucket:03d}"


def select(keyed: KeyedRecords, chosen: np.ndarray) -> KeyedRecords:
    """The records at the places ``chosen`` (bool [C] or int [n]), in that order."""
    offsets = keyed.records.offsets
    lengths = np.diff(offsets)[chosen]
    elements = keyed.records.elements[positions_of_runs(offsets[:-1][chosen], lengths)]
    records = Records(elements, offsets_of(lengths))
    return KeyedRecords(records, keyed.keys[chosen], keyed.document_hashes[chosen])


def _sorted(keyed: KeyedRecords) -> KeyedRecords:
    return select(keyed, np.argsort(keyed.keys, kind="stable"))
