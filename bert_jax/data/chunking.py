"""Text to packed records, in worker processes: sentences, WordPiece ids, chunks."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bert_jax.data.chunks import (
    SPECIAL_TOKENS_AROUND_CHUNK,
    concatenate,
    fill_chunks,
    pack_records,
    record_dtype,
)
from bert_jax.data.documents import Piece
from bert_jax.data.sentences import split_sentences
from bert_jax.data.spool import KeyedRecords
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.data.worker_processes import end_with_parent, explain_killed_worker


@dataclass(frozen=True)
class Chunker:
    """Turns pieces of documents into packed records; picklable.

    Attributes:
      tokenizer: the vocabulary.
      max_length: the longest row that the corpus is for, special tokens included.
      language: the language code by which sentences are split.
      wrapped_lines: whether a single line break is a space.
    """

    tokenizer: WordPieceTokenizer
    max_length: int
    language: str = "en"
    wrapped_lines: bool = False

    def __call__(self, pieces: list[Piece]) -> KeyedRecords:
        """The records of the pieces, in their order. Every piece begins a new chunk."""
        texts = [
            split_sentences(piece.text, language=self.language, wrapped_lines=self.wrapped_lines)
            for piece in pieces
        ]
        token_ids, lengths = self.tokenizer.encode_flat(list(itertools.chain.from_iterable(texts)))
        capacity = self.max_length - SPECIAL_TOKENS_AROUND_CHUNK
        chunks, sentence, token = [], 0, 0
        for text in texts:
            piece_lengths = lengths[sentence : sentence + len(text)]
            ends = np.cumsum(piece_lengths)[piece_lengths > 0]
            size = int(ends[-1]) if len(ends) else 0
            chunks.append(
                fill_chunks(
                    token_ids[token : token + size],
                    ends,
                    self.tokenizer.is_continuation,
                    capacity,
                )
            )
            sentence += len(text)
            token += size
        counts = [len(chunk.token_offsets) - 1 for chunk in chunks]
        documents = np.repeat(np.array([piece.document for piece in pieces], np.int64), counts)
        hashes = np.repeat(np.array([piece.document_hash for piece in pieces], np.uint64), counts)
        firsts = np.array([piece.document << 32 | piece.part << 20 for piece in pieces], np.uint64)
        within = np.concatenate([np.arange(0), *map(np.arange, counts)]).astype(np.uint64)
        dtype = record_dtype(self.tokenizer.size)
        return KeyedRecords(
            pack_records(concatenate(chunks), documents, dtype),
            _mix(np.repeat(firsts, counts) + within),
            hashes,
        )


def chunk_batches(
    batches: Iterable[list[Piece]], chunker: Chunker, *, workers: int
) -> Iterator[KeyedRecords]:
    """Applies ``chunker`` to batches, in order; what comes out does not depend on ``workers``.

    Args:
      batches: the batches; only a few more than there are workers are held at a time.
      chunker: what to apply.
      workers: the number of processes; 0 works in this one.

    Raises:
      UserError: a worker process died.
    """
    if workers == 0:
        yield from map(chunker, batches)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        # Threads of the libraries in this process do not survive a fork.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(chunker,),
    )
    running: collections.deque[concurrent.futures.Future[KeyedRecords]] = collections.deque()
    try:
        with explain_killed_worker():
            for batch in batches:
                running.append(pool.submit(_chunk_in_worker, batch))
                if len(running) > workers + 1:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_chunker: Chunker | None = None  # a pool hands its workers their state by a global only


def _start_worker(chunker: Chunker) -> None:
    global _worker_chunker
    _worker_chunker = chunker
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def _chunk_in_worker(pieces: list[Piece]) -> KeyedRecords:
    assert _worker_chunker is not None
    return _worker_chunker(pieces)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Scatters uint64 numbers, one to one (splitmix64, https://doi.org/10.1145/2660193.2660195)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
