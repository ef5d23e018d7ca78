"""Which text of a chunk becomes a pair, and where it is split in two.

All of it is vectorised over the B rows of a batch; see ``pairs`` for how positions count. ``where``
is how far into its chunk a text starts, as a share; ``targets`` the tokens that it aims at;
``split`` and ``anywhere`` are uniforms in [0, 1): all of them [B].
"""

from typing import NamedTuple

import numpy as np

from bert_jax.data.chunks import ChunkBatch
from bert_jax.data.randomness import below


class SplitText(NamedTuple):
    """Token positions in a ChunkBatch: text from ``start`` to ``end``, split at ``middle``.

    Where the text is one sentence only, the split is ``inside`` it.
    """

    start: np.ndarray
    middle: np.ndarray
    end: np.ndarray
    inside: np.ndarray


def choose_windows(
    chunks: ChunkBatch, where: np.ndarray, targets: np.ndarray, split: np.ndarray
) -> SplitText:
    """Whole sentences of each chunk, from about ``where``, until ``targets`` tokens are reached.

    The split falls after a random sentence, or, where one sentence is all there is, inside it.
    """
    starts, ends = sentence_bounds(chunks)
    chunk_starts, chunk_ends = chunks.token_offsets[:-1], chunks.token_offsets[1:]
    wanted = chunk_starts + (where * (chunk_ends - chunk_starts)).astype(np.int64)
    # A window needs two tokens, one for each segment.
    last_start = np.searchsorted(starts, chunk_ends - 2, side="right") - 1
    first = np.minimum(np.searchsorted(starts, wanted), last_start)
    start = starts[first]
    last = np.minimum(np.searchsorted(ends, start + targets), chunks.sentence_offsets[1:] - 1)
    end = ends[last]
    between = first + below(split, last - first)
    within = start + 1 + below(split, end - start - 1)
    inside = last == first
    return SplitText(start, np.where(inside, within, ends[between]), end, inside)


def choose_sentences(
    chunks: ChunkBatch,
    where: np.ndarray,
    targets: np.ndarray,
    split: np.ndarray,
    anywhere: np.ndarray,
    breaks_off: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two sentences or more of each chunk, from about ``where``: their start, a split, their end.

    They are as many as ``targets`` tokens hold. The split falls after a random one. A chunk's first
    sentence is left out, for it may be the end of one, and its last where the chunk ``breaks_off``.
    Where two do not fit, text that begins, is split and ends anywhere stands in for them.
    """
    starts, ends = sentence_bounds(chunks)
    chunk_starts, chunk_ends = chunks.token_offsets[:-1], chunks.token_offsets[1:]
    low, high = chunks.sentence_offsets[:-1] + 1, chunks.sentence_offsets[1:] - breaks_off
    wanted = chunk_starts + (where * (chunk_ends - chunk_starts)).astype(np.int64)
    first = np.maximum(np.minimum(np.searchsorted(starts, wanted), high - 2), low)
    first = np.minimum(first, len(starts) - 1)
    start = starts[first]
    last = np.minimum(np.searchsorted(ends, start + targets, side="right"), high) - 1
    are_several = (last > first) & (high - low > 1)
    last = np.where(are_several, last, first)
    middle = ends[first + below(split, last - first)]

    lengths = chunk_ends - chunk_starts
    # Half of the chunk, so that an outer end is hardly more often the chunk's than an inner one.
    room = np.minimum(targets, np.maximum(lengths // 2, 2))
    any_start = chunk_starts + below(anywhere, lengths - room + 1)
    any_middle = any_start + 1 + below(split, room - 1)
    return (
        np.where(are_several, start, any_start),
        np.where(are_several, middle, any_middle),
        np.where(are_several, ends[last], any_start + room),
    )


def sentence_bounds(chunks: ChunkBatch) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last token of every sentence; a chunk starts where the one before ends."""
    ends = chunks.sentence_ends
    return np.concatenate([[0], ends[:-1]]), ends
