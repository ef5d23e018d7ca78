"""The TFDS builder that writes a corpus: spooled records in, sharded ArrayRecord out."""

import contextlib
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from bert_jax.data.chunks import record_dtype, unpack_records
from bert_jax.data.parts import Run
from bert_jax.data.spool import BUCKETS, KeyedRecords, SpooledRecords, select
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import FULL_DISK, UserError
from bert_jax.storage import as_path, file_size, local_place

FORMAT_VERSION = 1
FEATURE = "chunk"
TRAIN, VALIDATION = "train", "validation"
# At most 128 shards, so that all can be open.
_SHARD_BYTES = 16 << 20


def sidecar(directory: Path, split: str, name: str) -> Path:
    """The .npy file that holds one number a record: ``chunk_lengths`` or ``document_numbers``."""
    return directory / f"{split}-{name}.npy"


class SplitRule(NamedTuple):
    """Which of the spooled records are a split's.

    Attributes:
      name: the split's name.
      last_validation_hash: documents with at most this hash are for validation;
        None: there are none.
    """

    name: str
    last_validation_hash: int | None

    def select(self, keyed: KeyedRecords) -> KeyedRecords:
        """The split's own of some records."""
        if self.last_validation_hash is None:
            return keyed
        for_validation = keyed.document_hashes <= np.uint64(self.last_validation_hash)
        return select(keyed, for_validation == (self.name == VALIDATION))


class Shard(NamedTuple):
    """One file of records.

    Attributes:
      split: which records.
      first_bucket, end_bucket: the buckets of the spool that it holds.
      path: the file.
      statistics: the file for what is counted while it is written.
    """

    split: SplitRule
    first_bucket: int
    end_bucket: int
    path: Path
    statistics: Path


class ShardStatistics(NamedTuple):
    """What is counted of one shard, C records.

    Attributes:
      lengths: int32 [C], tokens of each record.
      documents: uint32 [C], the number of each record's document.
      sentences: int32 [C], sentences of each record.
      tokens_per_id: int64 [V], how often each token occurs.
      digests: uint8 [n, 32], a hash over the records of each bucket.
    """

    lengths: np.ndarray
    documents: np.ndarray
    sentences: np.ndarray
    tokens_per_id: np.ndarray
    digests: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "ShardStatistics":
        """Reads what ``write`` wrote."""
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            return cls(**arrays)

    def write(self, path: Path) -> None:
        """Writes a file of arrays."""
        content = io.BytesIO()
        np.savez(content, **self._asdict())
        path.write_bytes(content.getvalue())


@contextlib.contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    """ArrayRecord reports a failed write as a ``RuntimeError`` that quotes the system's error."""
    try:
        yield
    except RuntimeError as error:
        reasons = map(os.strerror, FULL_DISK)
        reason = next((reason for reason in reasons if reason in str(error)), None)
        if reason is None:
            raise
        raise UserError(
            f"{path} cannot be written ({reason}); free some space there, or give another --output"
        ) from None


@dataclass(frozen=True)
class ShardWriter:
    """Writes a shard and its statistics; picklable. Done twice, it gives the same.

    Attributes:
      spooled: the records of all splits.
      vocabulary_size: V.
    """

    spooled: SpooledRecords
    vocabulary_size: int

    def __call__(self, shard: Shard) -> None:
        """Writes one shard; holds no more than one bucket of the spool."""
        statistics: list[ShardStatistics] = []
        with local_place(shard.path) as path, _explain_full_disk(shard.path):
            tfds.core.ExampleWriter(tfds.core.FileFormat.ARRAY_RECORD).write(
                path, self._examples(shard, statistics)
            )
        lengths, documents, sentences, tokens_per_id, digests = zip(*statistics, strict=True)
        ShardStatistics(
            np.concatenate(lengths),
            np.concatenate(documents),
            np.concatenate(sentences),
            np.sum(tokens_per_id, axis=0),
            np.concatenate(digests),
        ).write(shard.statistics)

    def _examples(
        self, shard: Shard, statistics: list[ShardStatistics]
    ) -> Iterator[tuple[int, bytes]]:
        features = _features(self.vocabulary_size)
        serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
        for bucket in range(shard.first_bucket, shard.end_bucket):
            keyed = shard.split.select(self.spooled.read(bucket))
            statistics.append(self._count(keyed))
            elements, offsets = keyed.records
            for i, key in enumerate(keyed.keys.tolist()):
                example = features.encode_example({FEATURE: elements[offsets[i] : offsets[i + 1]]})
                yield key, serializer.serialize_example(example)

    def _count(self, keyed: KeyedRecords) -> ShardStatistics:
        chunks, documents = unpack_records(keyed.records)
        digest = hashlib.sha256(keyed.records.offsets.astype("<i8").tobytes())
        digest.update(keyed.records.elements.tobytes())
        return ShardStatistics(
            np.diff(chunks.token_offsets).astype("<i4"),
            documents.astype("<u4"),
            np.diff(chunks.sentence_offsets).astype("<i4"),
            np.bincount(chunks.token_ids, minlength=self.vocabulary_size),
            np.frombuffer(digest.digest(), np.uint8)[None],
        )


class SplitStatistics:
    """What is counted of one split.

    Args:
      name: the split's name.
      shards: the statistics of its shards, in order.
      documents: how many documents the corpus has.

    Attributes:
      counts: documents, documents of one sentence, chunks, sentences and tokens.
      unigram_counts: how often each token occurs, [V].
      digest: a hash over the split's records, in their order.
      shard_lengths: records of each shard.
    """

    def __init__(self, name: str, shards: Sequence[ShardStatistics], *, documents: int):
        sentences = np.zeros(documents, np.int64)
        for shard in shards:
            np.add.at(sentences, shard.documents, shard.sentences)
        tokens_per_id = np.sum([shard.tokens_per_id for shard in shards], axis=0)
        self.name = name
        self.shard_lengths = [len(shard.lengths) for shard in shards]
        self.counts = {
            "documents": int(np.count_nonzero(sentences)),
            "one_sentence_documents": int(np.count_nonzero(sentences == 1)),
            "chunks": sum(self.shard_lengths),
            "sentences": int(sentences.sum()),
            "tokens": int(tokens_per_id.sum()),
        }
        self.unigram_counts: list[int] = tokens_per_id.tolist()
        digest = hashlib.sha256(name.encode())
        for shard in shards:
            digest.update(shard.digests.tobytes())
        self.digest = digest.hexdigest()
        # One small integer a record is all that grows with the corpus.
        self._sidecars = {
            "chunk_lengths": np.concatenate([shard.lengths for shard in shards]),
            "document_numbers": np.concatenate([shard.documents.view("<i4") for shard in shards]),
        }

    def write_sidecars(self, directory: Path) -> None:
        """Writes chunk lengths and document numbers, in the order of the records."""
        for name, numbers in self._sidecars.items():
            with local_place(sidecar(directory, self.name, name)) as path:
                np.save(path, numbers)


class BertCorpus(tfds.core.dataset_builder.FileReaderBuilder):
    """A corpus as a TFDS data set with one packed feature (see ``bert_jax.data.chunks``).

    TFDS's own way to have shards written by Beam is not taken: of more than ten it mistakes the
    order of their lengths, and it writes the first split's again with the second.

    Args:
      data_dir: where the data set's directory is made.
      scratch: a directory for what is needed while it is made.
      spooled: the records.
      spooled_bytes: the size of all records together.
      splits: the splits to make of them.
      documents: how many documents there are.
      tokenizer: the vocabulary that made the records.
      max_length: the longest row that the corpus is for.
      description: further metadata: sources, counts, settings.
      run: who writes the shards.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded: TFDS need not look for checksums beside the code

    def __init__(
        self,
        *,
        data_dir: Path,
        scratch: Path,
        spooled: SpooledRecords,
        spooled_bytes: int,
        splits: Sequence[SplitRule],
        documents: int,
        tokenizer: WordPieceTokenizer,
        max_length: int,
        description: dict[str, Any],
        run: Run,
    ):
        self._scratch = scratch
        self._spooled = spooled
        self._spooled_bytes = spooled_bytes
        self._splits = splits
        self._documents = documents
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._description = description
        self._run = run
        self._statistics: list[SplitStatistics] = []
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text as WordPiece ids in chunks of sentences, made by bert_jax.prepare.",
            features=_features(self._tokenizer.size),
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        del dl_manager, download_config
        shards = {split.name: self._shards(split) for split in self._splits}
        self._run(
            "writing records",
            ShardWriter(self._spooled, self._tokenizer.size),
            [shard for of_split in shards.values() for shard in of_split],
        )
        infos = []
        for name, of_split in shards.items():
            statistics = SplitStatistics(
                name,
                [ShardStatistics.read(shard.statistics) for shard in of_split],
                documents=self._documents,
            )
            self._statistics.append(statistics)
            infos.append(
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=statistics.shard_lengths,
                    num_bytes=sum(file_size(shard.path) for shard in of_split),
                    filename_template=self._get_filename_template(name),
                )
            )
        self.info.set_splits(tfds.core.SplitDict(infos))

    def _shards(self, split: SplitRule) -> list[Shard]:
        count = int(np.clip(self._spooled_bytes // _SHARD_BYTES, 1, BUCKETS))
        if split.name != TRAIN:
            count = -(-count // 16)
        bounds = np.linspace(0, BUCKETS, count + 1).astype(int).tolist()
        template = self._get_filename_template(split.name)
        return [
            Shard(
                split,
                first,
                end,
                as_path(template.sharded_filepath(shard_index=number, num_shards=count)),
                self._scratch / f"{split.name}-{number:03d}.npz",
            )
            for number, (first, end) in enumerate(itertools.pairwise(bounds))
        ]

    def write(self) -> Path:
        """Writes records, sidecars and, when all the rest is whole, metadata.

        Returns:
          The data set's directory.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
            self.download_and_prepare(download_dir=self._scratch)
        directory = as_path(self.data_dir)
        for split in self._statistics:
            split.write_sidecars(directory)
        train = self._statistics[0]
        fingerprint = [FORMAT_VERSION, self._tokenizer.hash, self._max_length]
        fingerprint += [split.digest for split in self._statistics]
        self.info.metadata.update(
            format_version=FORMAT_VERSION,
            fingerprint=hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest(),
            tokenizer=self._tokenizer.to_json(),
            tokenizer_hash=self._tokenizer.hash,
            max_length=self._max_length,
            counts={split.name: split.counts for split in self._statistics},
            unigram_counts=train.unigram_counts,
            **self._description,
        )
        self.info.metadata.save_metadata(directory)
        return directory


def _features(vocabulary_size: int) -> tfds.features.FeaturesDict:
    dtype = record_dtype(vocabulary_size)
    chunk = tfds.features.Tensor(
        shape=(None,), dtype=dtype.newbyteorder("=").type, encoding="bytes"
    )
    return tfds.features.FeaturesDict({FEATURE: chunk})
