"""An in-memory split, so that pairing and masking are tested on texts made to be difficult."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from bert_jax.data.chunks import ChunkBatch, offsets_of, positions_of_runs

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
FIRST_ORDINARY = 5


@dataclasses.dataclass
class InMemorySplit:
    """What ``bert_jax.data.corpus.Split`` offers, over arrays."""

    chunks: ChunkBatch
    documents: np.ndarray
    name: str = "train"
    directory: str = "memory"

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.chunks.token_offsets).astype(np.int32)

    def __len__(self) -> int:
        return len(self.documents)

    def read(self, numbers: np.ndarray) -> ChunkBatch:
        tokens, sentences = self.chunks.token_offsets, self.chunks.sentence_offsets
        lengths = np.diff(tokens)[numbers]
        counts = np.diff(sentences)[numbers]
        offsets = offsets_of(lengths)
        ends = self.chunks.sentence_ends[positions_of_runs(sentences[numbers], counts)]
        return ChunkBatch(
            self.chunks.token_ids[positions_of_runs(tokens[numbers], lengths)],
            offsets,
            ends + np.repeat(offsets[:-1] - tokens[numbers], counts),
            offsets_of(counts),
        )


@pytest.fixture(scope="session")
def make_split() -> Callable[..., InMemorySplit]:
    """Makes a split of documents given as lists of chunks, each a list of sentence lengths.

    Token ids count up through the split from ``FIRST_ORDINARY``, so that a token tells its chunk.
    """

    def make(documents: list[list[list[int]]]) -> InMemorySplit:
        chunks = [chunk for document in documents for chunk in document]
        lengths = np.array([sum(chunk) for chunk in chunks])
        offsets = offsets_of(lengths)
        return InMemorySplit(
            ChunkBatch(
                np.arange(FIRST_ORDINARY, FIRST_ORDINARY + offsets[-1], dtype=np.int32),
                offsets,
                np.concatenate(
                    [start + np.cumsum(c) for start, c in zip(offsets, chunks, strict=False)]
                ),
                offsets_of(np.array([len(chunk) for chunk in chunks])),
            ),
            np.repeat(np.arange(len(documents)), [len(d) for d in documents]).astype(np.int32),
        )

    return make


@pytest.fixture(scope="session")
def random_documents() -> Callable[..., list[list[list[int]]]]:
    """Documents of 1 to 5 chunks of at most ``capacity`` tokens, in sentences of 1 to 40."""

    def make(seed: int, documents: int, capacity: int) -> list[list[list[int]]]:
        random = np.random.default_rng(seed)
        made = []
        for _ in range(documents):
            chunks = []
            for _ in range(random.integers(1, 6)):
                limit = random.choice([capacity, random.integers(2, capacity + 1)])
                chunk: list[int] = []
                while sum(chunk) < limit:
                    chunk.append(int(min(random.integers(1, 41), limit - sum(chunk))))
                chunks.append(chunk)
            made.append(chunks)
        return made

    return make
