"""Reading a prepared corpus by record number."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from bert_jax.data.builder import FEATURE, FORMAT_VERSION, BertCorpus, sidecar
from bert_jax.data.chunks import ChunkBatch, Records, offsets_of, record_dtype, unpack_records
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError, first_line
from bert_jax.storage import as_path, is_remote

__all__ = ["ChunkBatch", "Corpus", "Split", "is_corpus", "open_corpus", "read_vocabulary"]


class Split:
    """One split of a corpus; may be pickled and used in another process.

    Attributes:
      name: "train" or "validation".
      directory: the corpus's directory, as it was opened.
      lengths: int32 [n], the number of tokens of each record, mapped from disk.
      documents: int32 [n], the number of each record's document, mapped from disk.
    """

    def __init__(self, name: str, directory: Path, data_set: Path, dtype: np.dtype):
        self.name = name
        self.directory = directory
        self._data_set = data_set
        self._dtype = dtype
        self.lengths: np.ndarray = np.load(sidecar(data_set, name, "chunk_lengths"), mmap_mode="r")
        self.documents: np.ndarray = np.load(
            sidecar(data_set, name, "document_numbers"), mmap_mode="r"
        )
        self._source = _data_source(data_set, name)
        if not len(self._source) == len(self.lengths) == len(self.documents):
            raise ValueError(f"{len(self._source)} records, {len(self.lengths)} lengths")
        # Half a copy is told before the first step; the file's own index is at its end.
        self._source.__getitems__([0, len(self) - 1])

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, record_numbers: np.ndarray) -> ChunkBatch:
        """Reads chunks by number.

        Args:
          record_numbers: int [n], each from 0 to below ``len(self)``, in any order.

        Returns:
          The n chunks, in that order.

        Raises:
          IndexError: there is no record of some number.
        """
        numbers = np.asarray(record_numbers, np.int64)
        if len(numbers) == 0:
            return unpack_records(Records(np.empty(0, self._dtype), np.zeros(1, np.int64)))[0]
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise IndexError(
                f"the {self.name} split has records 0 to {len(self) - 1}, not "
                f"{numbers.min()} to {numbers.max()}"
            )
        try:
            found = self._source.__getitems__(numbers.tolist())
        except RuntimeError as error:
            raise UserError(
                f"The corpus {self.directory} is damaged ({first_line(error)}); copy it again"
            ) from None
        # TFDS's decoding of features costs three times as much as reading; this is what it stores.
        parse = tf_example_pb2.Example.FromString
        payloads = [
            parse(serialized).features.feature[FEATURE].bytes_list.value[0] for serialized in found
        ]
        sizes = np.fromiter(map(len, payloads), np.int64, len(payloads))
        elements = np.frombuffer(b"".join(payloads), self._dtype)
        return unpack_records(Records(elements, offsets_of(sizes // self._dtype.itemsize)))[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Split, (self.name, self.directory, self._data_set, self._dtype)


class Corpus:
    """A prepared corpus; made by ``open_corpus``; may be pickled.

    Attributes:
      directory: where it lies, as it was opened.
      tokenizer: the vocabulary that tokenised it.
      max_length: the longest row that it was prepared for, special tokens included.
      fingerprint: 64 hexadecimal digits over the vocabulary, the length and all records.
      unigram_counts: int64 [V], how often each token occurs in the training split.
      counts: split -> documents, one_sentence_documents, chunks, sentences, tokens.
      sources: name, documents and text_bytes of each input.
      metadata: all that the corpus records of itself.
    """

    def __init__(self, directory: Path, data_set: Path, metadata: Mapping[str, Any]):
        self.directory = directory
        self.metadata = metadata
        self.tokenizer = WordPieceTokenizer.from_json(metadata["tokenizer"])
        self.max_length: int = metadata["max_length"]
        self.fingerprint: str = metadata["fingerprint"]
        self.unigram_counts = np.array(metadata["unigram_counts"], np.int64)
        self.counts: dict[str, dict[str, int]] = metadata["counts"]
        self.sources: list[dict[str, Any]] = metadata["sources"]
        self._splits: dict[str, Split] = {}
        if not is_remote(directory):
            dtype = record_dtype(self.tokenizer.size)
            self._splits = {name: Split(name, directory, data_set, dtype) for name in self.counts}

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
          UserError: the corpus has no such split, or lies in an object store: its records can be
            read at random from a disk only.
        """
        if is_remote(self.directory):
            raise UserError(
                f"The corpus {self.directory} is in an object store; bert_jax.data.corpus_copy "
                "copies it to a disk"
            )
        if name not in self._splits:
            raise UserError(
                f"The corpus {self.directory} has no {name} split, only "
                f"{' and '.join(self._splits)}; prepare it from more than one document and with "
                "--validation_share above 0"
            )
        return self._splits[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_corpus, (self.directory,)


def is_corpus(directory: Path) -> bool:
    """Whether a directory looks like one that ``bert_jax.prepare`` wrote."""
    return (directory / BertCorpus.name).is_dir() or (directory / "dataset_info.json").exists()


def open_corpus(directory: str | Path) -> Corpus:
    """Opens a corpus that ``bert_jax.prepare`` wrote.

    Args:
      directory: what was given as ``--output``, or the TFDS data set's own directory inside it.

    Raises:
      UserError: there is no whole corpus of this program; the message has the command that
        makes one.
    """
    directory = as_path(directory)
    data_set = directory / BertCorpus.name / str(BertCorpus.VERSION)
    if (directory / "dataset_info.json").exists():
        data_set = directory
    command = (
        "prepare one with: python -m bert_jax.prepare --input 'corpus/*.txt' "
        f"--output {shlex.quote(str(directory))}"
    )
    if not directory.is_dir():
        raise UserError(f"There is no corpus at {directory}; {command}")
    try:
        metadata = json.loads((data_set / "metadata.json").read_text(encoding="utf-8"))
        written_version = metadata["format_version"]
        if written_version == FORMAT_VERSION:
            return Corpus(directory, data_set, metadata)
    except FileNotFoundError as error:
        missing = "metadata" if error.filename is None else Path(error.filename).name
        raise UserError(
            f"The directory {directory} holds no whole corpus ({missing} is missing); {command}"
        ) from None
    except (
        ValueError,
        KeyError,
        TypeError,
        OSError,
        RuntimeError,  # of files of records
        tfds.core.registered.DatasetNotFoundError,
    ):
        raise UserError(
            f"The directory {directory} holds a damaged corpus, or none of this program; "
            f"{command} --overwrite"
        ) from None
    raise UserError(
        f"The corpus {directory} has format {written_version}, this program reads "
        f"{FORMAT_VERSION}; {command} --overwrite"
    )


def read_vocabulary(path: Path, lowercase: bool | None = None) -> WordPieceTokenizer:
    """The vocabulary of a ``vocab.txt``, a ``tokenizer.json`` or a corpus.

    Args:
      path: the file, or the corpus's directory.
      lowercase: of a file, as ``WordPieceTokenizer.from_file`` has it.

    Raises:
      UserError: it cannot be read.
    """
    if path.is_dir():
        return open_corpus(path).tokenizer
    return WordPieceTokenizer.from_file(path, lowercase=lowercase)


def _data_source(data_set: Path, split: str) -> Any:
    """Random access to the serialized records of a split."""
    builder = tfds.builder_from_directory(data_set)
    shards = builder.info.splits[split].filepaths
    for shard in shards:
        if not shard.exists():
            raise FileNotFoundError(2, "No such file", str(shard))
    return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
