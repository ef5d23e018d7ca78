"""Batches of rows of about the same length, so that short rows do not pay for long ones.

The stream of rows is the endless, reshuffled one of ``order``. It is cut into windows of some
batches, no more than an epoch has; within a window rows are sorted by length, cut into batches, and
the batches shuffled. So a batch is a pure function of (seed, step, lengths), and any step is
reached in constant time.
"""

import math
from collections.abc import Sequence

import numpy as np

from bert_jax.data.order import shuffled_rows
from bert_jax.data.randomness import permutation

# More batches sort better and are less alike to a shuffled epoch.
_MOST_BATCHES_PER_WINDOW = 32
# Lengths are padded to a multiple of this, and to few of them, for each is compiled once.
_MULTIPLE = 4
_MOST_LENGTHS = 8
# To compile a program takes about as long as so many batches: 30 for six layers of width 384, which
# are unrolled, on a CPU; less for larger models there, more on accelerators.
_BATCHES_A_PROGRAM = 32


def choose_lengths(
    lengths: np.ndarray, max_length: int, batches: float = math.inf, most: int = _MOST_LENGTHS
) -> tuple[int, ...]:
    """The few lengths to pad to that waste the least time.

    A length more saves positions, and costs a compilation, which pays where many batches are made.

    Args:
      lengths: int [n], real tokens of each row, at most ``max_length``.
      max_length: the longest row.
      batches: how many batches of such rows are made.
      most: how many lengths to choose at most.

    Returns:
      Rising multiples of 4, of which the last holds the longest row.
    """
    units = -(-np.minimum(lengths, max_length) // _MULTIPLE)
    rows = np.bincount(units)
    top = len(rows) - 1
    before = np.concatenate([[0], np.cumsum(rows)])  # rows of at most so many units, plus one
    # In units of positions of all rows once, as everything here.
    price = lengths.sum() / _MULTIPLE * _BATCHES_A_PROGRAM / batches
    # cost[end]: of all rows up to `end` units, with so many lengths of which `end` is one.
    ends = np.arange(top + 1)
    alone = before[ends + 1] * ends + price  # `end` is the only length
    cost = np.where(ends > 0, alone, 0).astype(np.float64)
    came_from = []
    for _ in range(min(most, top) - 1):
        totals = cost[:, None] + (before[ends + 1] - before[ends + 1][:, None]) * ends + price
        totals[ends[:, None] >= ends] = np.inf
        totals[0] = alone
        came_from.append(np.argmin(totals, axis=0))
        cost = totals.min(axis=0)
    chosen = [top]
    for source in reversed(came_from):
        if (shorter := int(source[chosen[-1]])) == 0:
            break
        chosen.append(shorter)
    return tuple(min(unit * _MULTIPLE, max_length) for unit in reversed(chosen))


def padded_length(longest: int, choices: Sequence[int]) -> int:
    """The smallest of the chosen lengths that holds a row."""
    return next(length for length in choices if length >= longest)


class BucketPlan:
    """Which rows each step of a training run reads, and how long its batch is.

    Args:
      lengths: int [n], real tokens of each row.
      choices: the lengths to pad to, as ``choose_lengths`` gives them.
      batch_size: rows of a global batch.
      seed: the run's seed.
    """

    def __init__(self, lengths: np.ndarray, choices: Sequence[int], batch_size: int, seed: int):
        self._lengths = lengths
        self._choices = choices
        self._batch_size = batch_size
        self._seed = seed
        # Of a window of several epochs a batch would hold a few rows many times over.
        self._batches = min(max(1, len(lengths) // batch_size), _MOST_BATCHES_PER_WINDOW)
        self._window: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """The rows of a step's global batch, int64 [batch_size], and the length to pad them to."""
        window, place = divmod(step, self._batches)
        if self._window[0] != window:  # kept, because the steps that follow want it too
            self._window = (window, self._plan(window))
        rows = self._window[1][place]
        return rows, padded_length(int(self._lengths[rows].max()), self._choices)

    def _plan(self, window: int) -> np.ndarray:
        """The rows of a window's batches: int64 [batches, batch_size]."""
        size = self._batches * self._batch_size
        places = window * size + np.arange(size)
        rows = shuffled_rows(len(self._lengths), places, self._seed)
        # A stable sort leaves rows of one length in their random order.
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        batches = rows.reshape(self._batches, self._batch_size)
        order = permutation(self._seed, "batches of a window", window, self._batches)
        return batches[order]
