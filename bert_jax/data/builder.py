"""The TFDS builder that writes a corpus: spooled records in, sharded ArrayRecord out."""

import contextlib
import functools
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from bert_jax.data.chunks import record_dtype, unpack_records
from bert_jax.data.spool import BUCKETS, KeyedRecords, Spool, select
from bert_jax.data.tokenizer import WordPieceTokenizer

FORMAT_VERSION = 1
FEATURE = "chunk"
TRAIN, VALIDATION = "train", "validation"
# TFDS holds the records of the shard that it writes; 128 shards at most, so that all can be open.
_SHARD_BYTES = 16 << 20

Example = tuple[int, dict[str, np.ndarray]]


def sidecar(directory: Path, split: str, name: str) -> Path:
    """The .npy file that holds one number a record: ``chunk_lengths`` or ``document_numbers``."""
    return directory / f"{split}-{name}.npy"


class SplitRecords:
    """The spooled records of one split, and what is counted while they are written.

    Args:
      name: the split's name.
      spool: the records of all splits.
      last_validation_hash: documents with at most this hash are for validation;
        None: there are none.
      documents: how many documents the spool knows.
      vocabulary_size: V.
    """

    def __init__(
        self,
        name: str,
        spool: Spool,
        last_validation_hash: int | None,
        *,
        documents: int,
        vocabulary_size: int,
    ):
        self.name = name
        self._spool = spool
        self._last_validation_hash = last_validation_hash
        self._tokens_per_id = np.zeros(vocabulary_size, np.int64)
        self._sentences_per_document = np.zeros(documents, np.int32)
        self._digest = hashlib.sha256(name.encode())
        # One small integer a record is all that grows with the corpus.
        self._lengths: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []

    def shards(self, count: int) -> list[Callable[[], Iterator[Example]]]:
        """``count`` generators of the shards' examples; each may be run once, in order."""
        bounds = np.linspace(0, BUCKETS, count + 1).astype(int)
        return [
            functools.partial(self._examples, range(first, end))
            for first, end in itertools.pairwise(bounds)
        ]

    def _examples(self, buckets: range) -> Iterator[Example]:
        for bucket in buckets:
            keyed = self._select_own(self._spool.read(bucket))
            self._count(keyed)
            elements, offsets = keyed.records
            for i, key in enumerate(keyed.keys.tolist()):
                yield key, {FEATURE: elements[offsets[i] : offsets[i + 1]]}

    def _select_own(self, keyed: KeyedRecords) -> KeyedRecords:
        if self._last_validation_hash is None:
            return keyed
        for_validation = keyed.document_hashes <= np.uint64(self._last_validation_hash)
        return select(keyed, for_validation == (self.name == VALIDATION))

    def _count(self, keyed: KeyedRecords) -> None:
        chunks, documents = unpack_records(keyed.records)
        self._digest.update(keyed.records.offsets.astype("<i8").tobytes())
        self._digest.update(keyed.records.elements.tobytes())
        self._tokens_per_id += np.bincount(chunks.token_ids, minlength=len(self._tokens_per_id))
        np.add.at(self._sentences_per_document, documents, np.diff(chunks.sentence_offsets))
        self._lengths.append(np.diff(chunks.token_offsets).astype("<i4"))
        self._documents.append(documents.astype("<u4"))

    @property
    def counts(self) -> dict[str, int]:
        """Documents, documents of one sentence, chunks, sentences and tokens written."""
        return {
            "documents": int(np.count_nonzero(self._sentences_per_document)),
            "one_sentence_documents": int(np.count_nonzero(self._sentences_per_document == 1)),
            "chunks": sum(map(len, self._lengths)),
            "sentences": int(self._sentences_per_document.sum()),
            "tokens": int(self._tokens_per_id.sum()),
        }

    @property
    def unigram_counts(self) -> list[int]:
        """How often each token was written, [V]."""
        return self._tokens_per_id.tolist()

    @property
    def digest(self) -> str:
        """A hash over the records that were written, in their order."""
        return self._digest.hexdigest()

    def write_sidecars(self, directory: Path) -> None:
        """Writes chunk lengths and document numbers, in the order of the records."""
        for name, parts in (
            ("chunk_lengths", self._lengths),
            ("document_numbers", [part.view("<i4") for part in self._documents]),
        ):
            np.save(sidecar(directory, self.name, name), np.concatenate(parts))


class BertCorpus(tfds.core.ShardBasedBuilder):
    """A corpus as a TFDS data set with one packed feature (see ``bert_jax.data.chunks``).

    Args:
      data_dir: where the data set's directory is made.
      splits: the records.
      spooled_bytes: the size of all records together.
      tokenizer: the vocabulary that made the records.
      max_length: the longest row that the corpus is for.
      description: further metadata: sources, counts, settings.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded: TFDS need not look for checksums beside the code

    def __init__(
        self,
        *,
        data_dir: Path,
        splits: list[SplitRecords],
        spooled_bytes: int,
        tokenizer: WordPieceTokenizer,
        max_length: int,
        description: dict[str, Any],
    ):
        self._splits = splits
        self._spooled_bytes = spooled_bytes
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._description = description
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        dtype = record_dtype(self._tokenizer.size)
        chunk = tfds.features.Tensor(
            shape=(None,), dtype=dtype.newbyteorder("=").type, encoding="bytes"
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text as WordPiece ids in chunks of sentences, made by bert_jax.prepare.",
            features=tfds.features.FeaturesDict({FEATURE: chunk}),
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Any]]:
        del dl_manager
        count = int(np.clip(self._spooled_bytes // _SHARD_BYTES, 1, BUCKETS))
        return {
            split.name: split.shards(count if split.name == TRAIN else -(-count // 16))
            for split in self._splits
        }

    def write(self, scratch: Path) -> Path:
        """Writes records, sidecars and metadata; returns the data set's directory.

        Args:
          scratch: a directory that TFDS may litter.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
            self.download_and_prepare(download_dir=scratch)
        directory = Path(self.data_dir)
        for split in self._splits:
            split.write_sidecars(directory)
        train = self._splits[0]
        fingerprint = [FORMAT_VERSION, self._tokenizer.hash, self._max_length]
        fingerprint += [split.digest for split in self._splits]
        self.info.metadata.update(
            format_version=FORMAT_VERSION,
            fingerprint=hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest(),
            tokenizer=self._tokenizer.to_json(),
            tokenizer_hash=self._tokenizer.hash,
            max_length=self._max_length,
            counts={split.name: split.counts for split in self._splits},
            unigram_counts=train.unigram_counts,
            **self._description,
        )
        self.info.metadata.save_metadata(directory)
        return directory
