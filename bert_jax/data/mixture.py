"""Mixtures of corpora: which source each row is drawn from, as a pure function of (seed, row).

Rows are planned in windows of a fixed size. Before any window, every source has had its exact share
of the rows, rounded; inside a window the sources come in random order. So the place of a row in its
own source's stream is known without looking at the rows before it.
"""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.data.randomness import permutation
from bert_jax.errors import UserError

_WINDOW = 4096


class Part(NamedTuple):
    """One corpus of a mixture: its directory (or ``docs``) and its share of the rows."""

    corpus: str
    weight: float


def parse_mixture(text: str) -> tuple[Part, ...]:
    """Reads ``wiki:0.7+books:0.3``; a single corpus without a weight is a mixture of one.

    Weights are divided by their sum.

    Raises:
      UserError: a part has no weight, or one that is no positive number, or a corpus comes twice.
    """
    names = text.split("+")
    is_single = len(names) == 1 and not _is_number(text.rpartition(":")[2])
    if is_single or os.path.isdir(text):
        return (Part(text, 1.0),)
    parts = []
    for name in names:
        corpus, _, weight = name.rpartition(":")
        if not corpus or not _is_number(weight) or not 0 < float(weight) < math.inf:
            raise UserError(
                f"corpus={text!r}: {name!r} has no positive weight; write a mixture as "
                "'data/wiki:0.7+data/books:0.3'"
            )
        parts.append(Part(corpus, float(weight)))
    if len({_place(part.corpus) for part in parts}) < len(parts):
        raise UserError(f"corpus={text!r} names a corpus twice; add up its weights instead")
    total = sum(part.weight for part in parts)
    return tuple(Part(part.corpus, part.weight / total) for part in parts)


def _place(corpus: str) -> str:
    """A corpus by one name, however its directory is written."""
    return os.path.realpath(corpus) if os.path.isdir(corpus) else corpus


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class MixturePlan:
    """Assigns rows to sources in proportion to ``weights``, which sum to 1."""

    def __init__(self, weights: Sequence[float], seed: int):
        self._weights = np.asarray(weights)
        self._bounds = np.concatenate([[0.0], np.cumsum(weights)])
        self._bounds[-1] = 1.0
        self._seed = seed

    def _before(self, rows: int) -> np.ndarray:
        """How many of the first ``rows`` rows, a whole number of windows, each source has."""
        if (self._weights[1:-1] >= 1 / _WINDOW).all():
            return np.diff(np.floor(rows * self._bounds).astype(np.int64))
        # Between two bounds so near each other the number of rows would not only rise.
        shares = np.floor(rows * self._weights).astype(np.int64)
        shares[np.argmax(self._weights)] += rows - shares.sum()
        return shares

    def _window(self, window: int) -> np.ndarray:
        """The source of every row of a window: int64 [_WINDOW]."""
        counts = self._before((window + 1) * _WINDOW) - self._before(window * _WINDOW)
        in_order = np.repeat(np.arange(len(counts)), counts)
        return in_order[permutation(self._seed, "mixture", window, _WINDOW)]

    def assign(self, first_row: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The sources of ``rows`` rows and the rows' places in their sources' own streams.

        Returns:
          (int64 [rows] source numbers, int64 [rows] rows counted within the source).
        """
        if len(self._bounds) == 2:
            return np.zeros(rows, np.int64), np.arange(first_row, first_row + rows)
        sources = np.empty(rows, np.int64)
        places = np.empty(rows, np.int64)
        for window in range(first_row // _WINDOW, (first_row + rows - 1) // _WINDOW + 1):
            start = window * _WINDOW
            drawn = self._window(window)
            place = np.empty(_WINDOW, np.int64)
            for source, before in enumerate(self._before(start)):
                mine = drawn == source
                place[mine] = before + np.arange(np.count_nonzero(mine))
            low, high = max(first_row, start), min(first_row + rows, start + _WINDOW)
            sources[low - first_row : high - first_row] = drawn[low - start : high - start]
            places[low - first_row : high - first_row] = place[low - start : high - start]
        return sources, places

    def counts(self, rows: int) -> np.ndarray:
        """How many of the first ``rows`` rows each source has: int64 [sources]."""
        sources = len(self._bounds) - 1
        if sources == 1:
            return np.array([rows])
        window, rest = divmod(rows, _WINDOW)
        partial = np.bincount(self._window(window)[:rest], minlength=sources)
        return self._before(window * _WINDOW) + partial
