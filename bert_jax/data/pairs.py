"""Builds model inputs from chunks: ``[CLS] A [SEP] B [SEP]``, or ``[CLS] text [SEP]``.

The recipe is BERT's (google-research/bert, ``create_pretraining_data.py``): fill a row with
sentences up to a target length, which is shorter for one row in ten; split it after a random
sentence into A and B; put a random B there half of the time; cut the longer segment, at a random
end, until both fit. It differs where BERT's lets the lengths tell the label. Here the lengths of A
and B are settled before the label is drawn, for both labels alike: a random B starts after a
sentence that its own chunk could have been split at, and is cut to the length that the true B would
have had. Nor may the ends tell it: a random B ends anywhere, so a true B that would end where a
sentence does loses up to a sentence or two.

For sentence order both segments are whole sentences, as in ALBERT (Lan et al., arXiv:1909.11942),
but as many as fit, so that nothing need be cut: where the text of a chunk breaks off within a
sentence, that would tell which segment stands outside.

Everything is vectorised over the rows of a batch. Sentence and token positions count from the start
of the batch's concatenated chunks, where they grow from one chunk to the next, so that one
``searchsorted`` serves ragged rows.

Shapes: B rows, L sequence length, K candidate partners, W words of coin tosses.
"""

import dataclasses
import enum
from typing import NamedTuple, Protocol

import numpy as np

from bert_jax.data.chunks import ChunkBatch
from bert_jax.data.framing import (
    FRAME_OF_PAIR,
    FRAME_OF_SINGLE,
    Framed,
    SpecialTokens,
    frame_pairs,
    frame_singles,
    truncated_lengths,
)
from bert_jax.data.randomness import below
from bert_jax.data.split_text import choose_sentences, choose_windows, sentence_bounds
from bert_jax.data.window_index import WindowIndex
from bert_jax.errors import UserError

# [CLS] A [SEP] B [SEP] with a token or two in each segment.
_SHORTEST_ROW = 8
# Columns of a row's uniforms.
_SHORT, _SHORT_LENGTH, _SPLIT, _LABEL, _END, _PARTNER_SPLIT, _PARTNERS = range(7)
_PARTNER_CANDIDATES = 4
# Longer than most sentences, so that a cut end is as likely to be a sentence's end as any place.
_MOST_CUT_AT_END = 32
UNIFORMS_PER_ROW = _PARTNERS + _PARTNER_CANDIDATES


class Objective(enum.StrEnum):
    """What the second segment is for."""

    NEXT_SENTENCE = "nsp"  # BERT: does B follow A? 0 = next, 1 = random
    SENTENCE_ORDER = "sop"  # ALBERT: are A and B in order? 0 = in order, 1 = swapped
    NONE = "none"  # RoBERTa: one segment of full length, no label


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """How rows are built.

    Attributes:
      max_length: L, special tokens included.
      objective: what the second segment is for.
      short_sequence_share: share of pair rows with a random, shorter target length.
      random_next_share: share of rows with label 1.
      sequences_per_row: how many sequences at most share a row.

    Raises:
      UserError: a value is out of range.
    """

    max_length: int
    objective: Objective = Objective.NEXT_SENTENCE
    short_sequence_share: float = 0.1
    random_next_share: float = 0.5
    sequences_per_row: int = 1

    def __post_init__(self) -> None:
        if self.max_length < _SHORTEST_ROW:
            raise UserError(
                f"max_length={self.max_length} leaves no room for text; give at least "
                f"{_SHORTEST_ROW}"
            )
        for name in ("short_sequence_share", "random_next_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.{name} is {getattr(self, name)}; give a share from 0 to 1")
        if self.sequences_per_row < 1:
            raise UserError(
                f"data.sequences_per_row is {self.sequences_per_row}; give 1, or more to pack"
            )

    @property
    def is_packed(self) -> bool:
        """Whether rows hold several sequences."""
        return self.sequences_per_row > 1

    @property
    def frame(self) -> int:
        """Special tokens of a sequence."""
        return FRAME_OF_SINGLE if self.objective is Objective.NONE else FRAME_OF_PAIR

    @property
    def capacity(self) -> int:
        """The most text tokens a row can hold."""
        return self.max_length - self.frame

    @property
    def coins_per_row(self) -> int:
        """Words of coin tosses that a row may need to be cut, for both segments together."""
        return 2 * _coin_words(self.max_length)


class ChunkSource(Protocol):
    """Chunks by number: a split of a corpus.

    Attributes:
      lengths: int [n], tokens of each chunk, at least 2.
      documents: int [n], the document that each chunk is from.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def documents(self) -> np.ndarray: ...

    def read(self, numbers: np.ndarray) -> ChunkBatch: ...


class Rows(NamedTuple):
    """Model inputs before masking.

    Attributes:
      token_ids_BL: int32.
      segment_ids_BL: int32, 0 for ``[CLS] A [SEP]`` and padding, 1 for ``B [SEP]``.
      lengths_B: int32, the number of real tokens, which come first.
      labels_B: int32, the objective's label; 0 where it has none.
    """

    token_ids_BL: np.ndarray
    segment_ids_BL: np.ndarray
    lengths_B: np.ndarray
    labels_B: np.ndarray


def _coin_words(max_cut: int) -> int:
    return -(-max_cut // 64)


def _heads(coins_BW: np.ndarray, tosses: np.ndarray) -> np.ndarray:
    """Heads among the first ``tosses`` coins of each row; a row has 64 W of them, used in turn."""
    available = 64 * coins_BW.shape[1]
    per_round = np.bitwise_count(coins_BW).sum(axis=1, dtype=np.int64)
    rounds, rest = np.divmod(tosses, available)
    bits = np.clip(rest[:, None] - 64 * np.arange(coins_BW.shape[1]), 0, 64).astype(np.uint64)
    # A shift by 64 is undefined, so the full word is taken apart.
    masks = np.where(bits == 64, ~np.uint64(0), (np.uint64(1) << (bits % 64)) - np.uint64(1))
    return rounds * per_round + np.bitwise_count(coins_BW & masks).sum(axis=1, dtype=np.int64)


def build_rows(
    source: ChunkSource,
    index: WindowIndex,
    windows: np.ndarray,
    epochs: np.ndarray,
    uniforms: np.ndarray,
    coins: np.ndarray,
    options: PairOptions,
    special: SpecialTokens,
) -> Rows:
    """Builds one row for each window.

    Args:
      source: where chunks are read; for next sentences, of two documents or more.
      index: the source's windows for ``options.capacity``.
      windows: int64 [B], window numbers.
      epochs: int64 [B], how often the source was read before; of pairs it does not matter.
      uniforms: float64 [B, UNIFORMS_PER_ROW]; for single segments anything.
      coins: uint64 [B, options.coins_per_row], fair coin tosses; for single segments anything.
      options: how to build rows.
      special: ids of the framing tokens.
    """
    chunk_numbers, where = index.locate(windows)
    chunks = source.read(chunk_numbers)
    # Of a shared row, the plan knows no more than this bound. Where it is less than the target, a
    # pair is cut elsewhere than in a row of its own, and a random B starts elsewhere.
    if options.is_packed:
        targets = longest_texts(index, windows, uniforms, options)
    else:
        targets = _target_lengths(uniforms, options)
    if options.objective is Objective.NONE:
        starts = chunks.token_offsets[:-1] + index.full_starts(windows, epochs)
        lengths = np.minimum(chunks.token_offsets[1:] - starts, targets)
        framed = frame_singles(chunks.token_ids, starts, lengths, options.max_length, special)
        return _labelled(framed, np.zeros(len(windows), np.int32))
    is_one = (uniforms[:, _LABEL] < options.random_next_share).astype(np.int64)
    if options.objective is Objective.SENTENCE_ORDER:
        breaks_off = index.is_cut(chunk_numbers, np.ones(len(windows), bool))
        start, middle, end = choose_sentences(
            chunks, where, targets, uniforms[:, _SPLIT], uniforms[:, _END], breaks_off
        )
        swapped = is_one == 1
        framed = frame_pairs(
            chunks.token_ids,
            np.where(swapped, middle, start),
            np.where(swapped, end, middle) - np.where(swapped, middle, start),
            np.where(swapped, start, middle),
            np.where(swapped, middle, end) - np.where(swapped, start, middle),
            options.max_length,
            special,
        )
        return _labelled(framed, is_one)

    window = choose_windows(chunks, where, targets, uniforms[:, _SPLIT])
    full_first, full_second = window.middle - window.start, window.end - window.middle
    first_length, second_length = truncated_lengths(full_first, full_second, targets)
    words = coins.shape[1] // 2
    first_front = _heads(coins[:, :words], full_first - first_length)
    second_front = _heads(coins[:, words:], full_second - second_length)

    natural = (full_second - second_length == second_front) & ~index.is_cut(
        chunk_numbers, window.end == chunks.token_offsets[1:]
    )
    most = np.minimum(second_length - 1, _MOST_CUT_AT_END)
    cut = np.minimum(1 + below(uniforms[:, _END], most), most)
    second_length -= np.where(natural, cut, 0)

    first_start = window.start + first_front
    partners, partner_where = _choose_partners(
        source, index, chunk_numbers, second_front + second_length, uniforms
    )
    # A partner that is too short shortens B for both labels, or its length would tell the label.
    room = source.lengths[partners].astype(np.int64)
    second_front = np.minimum(second_front, room - 1)
    second_length = np.minimum(second_length, room - second_front)
    second_start = window.middle + second_front
    random_rows = np.flatnonzero(is_one)
    partner_chunks = source.read(partners[random_rows])
    second_start[random_rows] = len(chunks.token_ids) + _random_starts(
        partner_chunks,
        partner_where[random_rows],
        targets[random_rows],
        uniforms[random_rows, _PARTNER_SPLIT],
        window.inside[random_rows],
        second_front[random_rows],
        second_length[random_rows],
    )
    tokens = np.concatenate([chunks.token_ids, partner_chunks.token_ids])
    framed = frame_pairs(
        tokens,
        first_start,
        first_length,
        second_start,
        second_length,
        options.max_length,
        special,
    )
    return _labelled(framed, is_one)


def longest_texts(
    index: WindowIndex, windows: np.ndarray, uniforms: np.ndarray, options: PairOptions
) -> np.ndarray:
    """The most text tokens of each sequence, known without reading any: int64 [B].

    Args:
      index: the source's windows for ``options.capacity``.
      windows: int64 [B], window numbers.
      uniforms: as for `build_rows`.
      options: how to build rows.
    """
    if options.objective is Objective.NONE:
        return index.full_room(windows)
    room = index.room(windows)
    # A pair has a token in each segment, wherever in its chunk it is.
    return np.minimum(_target_lengths(uniforms, options), np.maximum(room, 2))


def _target_lengths(uniforms: np.ndarray, options: PairOptions) -> np.ndarray:
    """Text tokens each row aims at: the capacity, or for short pairs anything from 2 up to it."""
    if options.objective is Objective.NONE:
        return np.full(len(uniforms), options.capacity)
    short = uniforms[:, _SHORT] < options.short_sequence_share
    shorter = 2 + below(uniforms[:, _SHORT_LENGTH], options.capacity - 1)
    return np.where(short, shorter, options.capacity)


def _choose_partners(
    source: ChunkSource,
    index: WindowIndex,
    chunk_numbers: np.ndarray,
    needed: np.ndarray,
    uniforms: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of other documents, long enough to yield ``needed`` tokens where candidates allow.

    Returns:
      (int64 [B] chunk numbers, float64 [B] where their windows start).
    """
    draws_BK = uniforms[:, _PARTNERS : _PARTNERS + _PARTNER_CANDIDATES]
    candidates_BK, where_BK = index.locate(below(draws_BK, len(index)))
    documents = source.documents
    foreign_BK = documents[candidates_BK] != documents[chunk_numbers][:, None]
    useful_BK = np.where(foreign_BK, np.minimum(source.lengths[candidates_BK], needed[:, None]), 0)
    choice = np.argmax(useful_BK, axis=1)
    rows = np.arange(len(choice))
    partners, where = candidates_BK[rows, choice], where_BK[rows, choice]
    # Where one document makes up most of the corpus, walk on to the next foreign chunk.
    lost = np.flatnonzero(~foreign_BK[rows, choice])
    where[lost] = 0.0
    while lost.size:
        partners[lost] = (partners[lost] + 1) % len(documents)
        lost = lost[documents[partners[lost]] == documents[chunk_numbers[lost]]]
    return partners, where


def _random_starts(
    chunks: ChunkBatch,
    where: np.ndarray,
    targets: np.ndarray,
    split: np.ndarray,
    inside: np.ndarray,
    front: np.ndarray,
    length: np.ndarray,
) -> np.ndarray:
    """Where a random B starts in its partner, as the true B does: after a sentence, or inside one.

    It is moved back if it would not fit.
    """
    window = choose_windows(chunks, where, targets, split)
    starts, _ = sentence_bounds(chunks)
    first, latest = chunks.token_offsets[:-1], chunks.token_offsets[1:] - (front + length)
    wanted = np.where(window.inside, window.start, window.middle)
    sentence = starts[np.searchsorted(starts, np.minimum(wanted, latest), side="right") - 1]
    anywhere = first + below(split, latest - first + 1)
    return np.where(inside, anywhere, sentence) + front


def _labelled(framed: Framed, labels: np.ndarray) -> Rows:
    return Rows(*framed, labels_B=labels.astype(np.int32))
