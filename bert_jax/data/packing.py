"""Several short sequences in one row: which row each goes to, and how they lie there.

The endless stream of sequences is cut into windows, a whole number of them an epoch, and the
sequences of each are packed into a fixed number of rows. So what a row holds is a pure function of
(seed, row, lengths), and any row is reached in constant time. An epoch of one window is packed
exactly, if its sequences keep their lengths; otherwise windows whose sequences are longer than
usual leave a few of the shortest out, until the next epoch makes other windows, and those whose are
shorter leave a few rows empty.

Shapes: N sequences, R rows, L row length, Q most sequences of a row.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from bert_jax.data.chunks import offsets_of
from bert_jax.data.randomness import permutation

# About so many sequences are a window. The more, the nearer they are to the average; but who reads
# a row packs its window.
_WINDOW = 2048
# Sequences whose lengths tell how many go into a row, and how many more rows than that a window
# has, so that hardly any sequence is left out.
_SAMPLE = 4 * _WINDOW
_SLACK = 0.01

# The arrays of a batch that have an element for each token, unless a task has more of them.
OF_TOKENS = ("token_ids", "segment_ids")


def pack(lengths: np.ndarray, max_length: int, most: int, rows: int | None = None) -> np.ndarray:
    """Assigns sequences to rows: the longest first, each to the fullest row that has room.

    Args:
      lengths: int [N], tokens of each sequence, at most ``max_length``.
      max_length: L.
      most: Q.
      rows: R; None for as many as it takes.

    Returns:
      int64 [N], the row of each sequence, or -1 where none had room.
    """
    row_of = np.full(len(lengths), -1)
    limit = len(lengths) if rows is None else rows
    used = 0
    with_room: list[list[int]] = [[] for _ in range(max_length + 1)]  # rows by the room they have
    held = [0] * limit
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        room = next((room for room in range(length, max_length) if with_room[room]), None)
        if room is not None:
            row = with_room[room].pop()
        elif used < limit:
            row, room, used = used, max_length, used + 1
        else:
            continue
        row_of[number] = row
        held[row] += 1
        if held[row] < most:
            with_room[room - length].append(row)
    return row_of


class Packing(NamedTuple):
    """What packing comes to on a sample of the lengths.

    Attributes:
      sequences_per_row: how many go into a row on average.
      efficiency: the share of positions that hold a token.
      mean_length: tokens of a sequence on average.
      attended_length: tokens that a token attends to on average, those of its own sequence.
    """

    sequences_per_row: float
    efficiency: float
    mean_length: float
    attended_length: float

    def __str__(self) -> str:
        return (
            f"{self.sequences_per_row:.3g} sequences a row, {self.efficiency:.1%} of its positions "
            "are tokens"
        )


def packing_of(lengths: np.ndarray, rows: float, max_length: int) -> Packing:
    """What packing comes to.

    Args:
      lengths: int [N], tokens of each sequence.
      rows: how many rows they take; no whole number where that is an average.
      max_length: L.
    """
    lengths = lengths.astype(np.float64)
    tokens = float(lengths.sum())
    return Packing(
        sequences_per_row=len(lengths) / rows,
        efficiency=tokens / rows / max_length,
        mean_length=tokens / len(lengths),
        attended_length=float(np.square(lengths).sum()) / tokens,
    )


class PackingPlan:
    """Which sequences of an endless stream each row holds.

    Args:
      lengths_of: the lengths, int [n], of the sequences of some numbers, int64 [n].
      epoch: sequences of an epoch, at least 1.
      max_length: L.
      most: Q.
      seed: the run's seed.
      purpose: names the stream.

    Attributes:
      most: Q.
      rows_per_epoch: how many rows an epoch has.
      packing: what it comes to for those lengths, which may be bounds.
    """

    def __init__(
        self,
        lengths_of: Callable[[np.ndarray], np.ndarray],
        epoch: int,
        max_length: int,
        most: int,
        *,
        seed: int,
        purpose: str,
    ):
        self._lengths_of = lengths_of
        self._epoch = epoch
        self._max_length = max_length
        self.most = most
        self._seed = seed
        self._purpose = f"{purpose} packed rows"
        self._windows = -(-epoch // _WINDOW)  # of an epoch
        lengths = lengths_of(np.arange(min(epoch, _SAMPLE)))
        rows = int(pack(lengths, max_length, most).max()) + 1
        if self._windows > 1:
            share = -(-epoch // self._windows) / len(lengths)
            rows = math.ceil(rows * share * (1 + _SLACK))
        self._rows = rows  # of a window
        self.rows_per_epoch = self._windows * rows
        taken = len(lengths) / epoch * self.rows_per_epoch
        self.packing = packing_of(lengths, taken, max_length)
        self._last: tuple[int, np.ndarray, np.ndarray] = (-1, *2 * (np.empty(0, np.int64),))

    def sequences_before(self, row: int) -> int:
        """How many sequences the rows before a row hold; about, within a window."""
        return row * self._epoch // self.rows_per_epoch

    def rows(self, first_row: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences of some rows, of which a few may have none.

        Returns:
          int64 [N], numbers of sequences, those of a row one after the other; and int64 [N], the
          row of each, counted from ``first_row`` and rising.
        """
        numbers, places = [], []
        last_row = first_row + rows - 1
        for window in range(first_row // self._rows, last_row // self._rows + 1):
            if self._last[0] != window:  # kept, because the rows that follow want it too
                self._last = (window, *self._pack(window))
            _, sequences, row_of = self._last
            low, high = np.searchsorted(row_of, [first_row, last_row + 1])
            numbers.append(sequences[low:high])
            places.append(row_of[low:high] - first_row)
        return np.concatenate(numbers), np.concatenate(places)

    def _pack(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences of a window's rows, and the row of each: both int64 [N], by row."""
        first, end = (number * self._epoch // self._windows for number in (window, window + 1))
        sequences = np.arange(first, end)
        row_of = pack(self._lengths_of(sequences), self._max_length, self.most, self._rows)
        # The rows that were filled first hold the longest sequences.
        shuffled = permutation(self._seed, self._purpose, window, self._rows)
        row_of = np.where(row_of < 0, self._rows, shuffled[row_of])
        order = np.argsort(row_of, kind="stable")[: np.count_nonzero(row_of < self._rows)]
        return sequences[order], window * self._rows + row_of[order]


def pack_batch(
    batch: Mapping[str, np.ndarray],
    row_of: np.ndarray,
    rows: int,
    max_length: int,
    most: int,
    of_tokens: Collection[str] = OF_TOKENS,
) -> dict[str, np.ndarray]:
    """Lays the sequences of a batch out in rows.

    Args:
      batch: ``lengths`` int32 [N]; arrays of the tokens [N, l], of any length that holds the
        sequences; and what else there is of each sequence, [N, ...].
      row_of: int64 [N], the row of each sequence, rising.
      rows: R.
      max_length: L.
      most: Q.
      of_tokens: the names of the arrays of the tokens.

    Returns:
      Arrays of the same names: [R, L] of the tokens, and [R, Q, ...] of the sequences. What holds
      nothing is zero.
    """
    lengths = batch["lengths"].astype(np.int64)
    row_starts = np.searchsorted(row_of, np.arange(rows))
    place_in_row = np.arange(len(row_of)) - row_starts[row_of]
    before = offsets_of(lengths)[:-1]
    columns = before - before[row_starts[row_of]]
    real = np.arange(batch["token_ids"].shape[1]) < lengths[:, None]
    targets = np.arange(lengths.sum()) + np.repeat(row_of * max_length + columns - before, lengths)
    packed = {}
    for name, array in batch.items():
        if name in of_tokens:
            tokens = np.zeros(rows * max_length, array.dtype)
            tokens[targets] = array[real]
            packed[name] = tokens.reshape(rows, max_length)
        else:
            packed[name] = np.zeros((rows, most, *array.shape[1:]), array.dtype)
            packed[name][row_of, place_in_row] = array
    return packed
