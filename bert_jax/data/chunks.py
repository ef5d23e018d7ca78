"""Chunks: runs of consecutive sentences of one document, and how they are packed into records.

A record is one vector of integers (little-endian ``uint16``, or ``uint32`` where the vocabulary has
more than 65,536 entries)::

    [document & 0xffff, document >> 16, S, end_1 .. end_S, token_1 .. token_T]

``S`` is the number of sentences, ``end_s`` the number of the chunk's tokens up to and including
sentence ``s`` (so ``end_S == T``). Everything here works on many chunks at once: flat arrays with
offsets, never one Python object a chunk.

Legend: C chunks; T tokens and S sentences of all chunks; E elements of all records.
"""

from typing import NamedTuple

import numpy as np

HEADER_ELEMENTS = 3
LARGEST_SMALL_VOCABULARY = 1 << 16
MIN_CHUNK_TOKENS = 2
# BERT puts [CLS] and at least one [SEP] around a chunk.
SPECIAL_TOKENS_AROUND_CHUNK = 2
# Sentence ends are stored in 16 bits.
MAX_CHUNK_TOKENS = (1 << 16) - 1


class ChunkBatch(NamedTuple):
    """Some chunks, one after the other.

    Attributes:
      token_ids: int32 [T], the tokens of all chunks, without special tokens.
      token_offsets: int64 [C+1]; chunk ``c`` is ``token_ids[token_offsets[c]:token_offsets[c+1]]``.
      sentence_ends: int64 [S], positions in ``token_ids`` where sentences end (exclusive), rising.
      sentence_offsets: int64 [C+1]; the ends of chunk ``c``'s sentences are
        ``sentence_ends[sentence_offsets[c]:sentence_offsets[c+1]]``, of which the last is
        ``token_offsets[c+1]``.
    """

    token_ids: np.ndarray
    token_offsets: np.ndarray
    sentence_ends: np.ndarray
    sentence_offsets: np.ndarray


class Records(NamedTuple):
    """Packed records, one after the other.

    Attributes:
      elements: uint16 or uint32 [E].
      offsets: int64 [C+1]; record ``c`` is ``elements[offsets[c]:offsets[c+1]]``.
    """

    elements: np.ndarray
    offsets: np.ndarray


def record_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest element type of a record that holds every token id."""
    return np.dtype("<u2" if vocabulary_size <= LARGEST_SMALL_VOCABULARY else "<u4")


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """``[0, l_0, l_0 + l_1, ...]``: int64 [n+1] offsets of runs with the given lengths [n]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def positions_of_runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Joins the ranges ``starts[i] .. starts[i] + lengths[i]``: int64 [sum(lengths)]."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


def fill_chunks(
    token_ids: np.ndarray, sentence_ends: np.ndarray, is_continuation: np.ndarray, capacity: int
) -> ChunkBatch:
    """Cuts one document into full chunks.

    Each chunk takes as many tokens as it may hold; a sentence that crosses its end is cut, and the
    rest opens the next chunk, so that rows are full and nothing is lost. The cut never falls before
    a "##" piece, except inside a word with no room in a chunk of its own or beside one token. A
    last chunk of fewer than two tokens is dropped.

    Args:
      token_ids: int [T], the tokens of the document.
      sentence_ends: int [S], where its sentences end (exclusive), strictly rising, last = T.
      is_continuation: bool [V], true for the vocabulary's "##" pieces.
      capacity: the largest number of tokens in a chunk, at least 2.

    Returns:
      The document's chunks in order, possibly none.
    """
    total = len(token_ids)
    within_word = is_continuation[token_ids]
    cuts = [0]
    while cuts[-1] < total:
        start = cuts[-1]
        end = min(start + capacity, total)
        if end < total:
            while end > start and within_word[end]:
                end -= 1
            if end - start < MIN_CHUNK_TOKENS:
                end = start + capacity
        cuts.append(end)
    if len(cuts) > 1 and cuts[-1] - cuts[-2] < MIN_CHUNK_TOKENS:
        cuts.pop()
    token_offsets = np.asarray(cuts, np.int64)
    kept = sentence_ends[: np.searchsorted(sentence_ends, cuts[-1])]
    ends = np.union1d(kept, token_offsets[1:]).astype(np.int64)
    sentence_offsets = np.searchsorted(ends, token_offsets, side="right")
    return ChunkBatch(
        np.asarray(token_ids[: cuts[-1]], np.int32), token_offsets, ends, sentence_offsets
    )


def concatenate(batches: list[ChunkBatch]) -> ChunkBatch:
    """Joins batches of chunks into one."""
    tokens = offsets_of(np.array([len(batch.token_ids) for batch in batches], np.int64))
    sentences = offsets_of(np.array([len(batch.sentence_ends) for batch in batches], np.int64))
    no_offsets, no_tokens = np.zeros(1, np.int64), np.zeros(0, np.int32)
    return ChunkBatch(
        np.concatenate([no_tokens, *(batch.token_ids for batch in batches)]),
        np.concatenate(
            [
                no_offsets,
                *(b.token_offsets[1:] + at for b, at in zip(batches, tokens, strict=False)),
            ]
        ),
        np.concatenate(
            [
                no_offsets[:0],
                *(b.sentence_ends + at for b, at in zip(batches, tokens, strict=False)),
            ]
        ),
        np.concatenate(
            [
                no_offsets,
                *(b.sentence_offsets[1:] + at for b, at in zip(batches, sentences, strict=False)),
            ]
        ),
    )


def pack_records(chunks: ChunkBatch, documents: np.ndarray, dtype: np.dtype) -> Records:
    """Packs chunks into records.

    Args:
      chunks: the chunks.
      documents: int [C], the number of each chunk's document, below 2**32.
      dtype: the element type, as ``record_dtype`` gives it.

    Returns:
      The records, in the order of the chunks.
    """
    token_counts = np.diff(chunks.token_offsets)
    sentence_counts = np.diff(chunks.sentence_offsets)
    offsets = offsets_of(HEADER_ELEMENTS + sentence_counts + token_counts)
    starts = offsets[:-1]
    elements = np.empty(offsets[-1], dtype)
    elements[starts] = documents & 0xFFFF
    elements[starts + 1] = documents >> 16
    elements[starts + 2] = sentence_counts
    ends_in_chunk = chunks.sentence_ends - np.repeat(chunks.token_offsets[:-1], sentence_counts)
    elements[positions_of_runs(starts + HEADER_ELEMENTS, sentence_counts)] = ends_in_chunk
    token_starts = starts + HEADER_ELEMENTS + sentence_counts
    elements[positions_of_runs(token_starts, token_counts)] = chunks.token_ids
    return Records(elements, offsets)


def unpack_records(records: Records) -> tuple[ChunkBatch, np.ndarray]:
    """The inverse of ``pack_records``.

    Returns:
      The chunks, and the int64 [C] numbers of their documents.
    """
    starts = records.offsets[:-1]
    low, high, sentence_counts = (
        records.elements[starts + i].astype(np.int64) for i in range(HEADER_ELEMENTS)
    )
    token_counts = np.diff(records.offsets) - HEADER_ELEMENTS - sentence_counts
    token_offsets = offsets_of(token_counts)
    ends_in_chunk = records.elements[positions_of_runs(starts + HEADER_ELEMENTS, sentence_counts)]
    token_starts = starts + HEADER_ELEMENTS + sentence_counts
    token_ids = records.elements[positions_of_runs(token_starts, token_counts)]
    chunks = ChunkBatch(
        token_ids.astype(np.int32),
        token_offsets,
        ends_in_chunk.astype(np.int64) + np.repeat(token_offsets[:-1], sentence_counts),
        offsets_of(sentence_counts),
    )
    return chunks, low | high << 16
