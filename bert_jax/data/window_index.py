"""Which windows of text a source's chunks offer, known from their lengths alone.

Shapes: B windows.
"""

import numpy as np

# A full chunk may lack so many tokens: it is not cut inside a word.
_WORD_PIECES = 8
_GOLDEN_RATIO = (5**0.5 - 1) / 2


class WindowIndex:
    """Numbers the windows that a source's chunks offer to rows of a given capacity.

    A chunk that fits a row is one window. A corpus that was prepared for longer sequences offers
    each chunk as several windows, as many as come nearest to its length, so that an epoch sees
    nearly all of the text about once.
    """

    def __init__(self, lengths: np.ndarray, capacity: int):
        self._parts = np.maximum(np.rint(lengths / capacity), 1).astype(np.int64)
        self._ends = np.cumsum(self._parts)
        self._lengths = lengths
        self._capacity = capacity
        self._full = int(lengths.max()) - _WORD_PIECES

    def __len__(self) -> int:
        return int(self._ends[-1])

    def full_starts(self, windows: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """After how many tokens of its chunk each window starts, so that rows are full: int64 [B].

        Where a chunk's windows are longer together than it is, they overlap evenly. Where they are
        shorter, they stand side by side, and what they leave out lies elsewhere in each epoch.

        Args:
          windows: int64 [B], their numbers.
          epochs: int64 [B], how often the source was read before.
        """
        chunks, place = self._find(windows)
        parts, lengths = self._parts[chunks], self._lengths[chunks].astype(np.int64)
        left_over = np.maximum(lengths - parts * self._capacity, 0)
        apart = np.minimum((lengths - self._capacity) / np.maximum(parts - 1, 1), self._capacity)
        # Multiples of the golden ratio fill [0, 1) evenly, from wherever they begin; a quarter each
        # stands for 0 and 1, or the ends of a chunk would hardly ever be read.
        share = np.clip(1.5 * ((epochs + chunks) * _GOLDEN_RATIO % 1.0) - 0.25, 0.0, 1.0)
        return (place * apart + np.round(share * left_over)).astype(np.int64)

    def room(self, windows: np.ndarray) -> np.ndarray:
        """The most text tokens of each window, known without reading its chunk: int64 [B]."""
        chunks, where = self.locate(windows)
        lengths = self._lengths[chunks].astype(np.int64)
        return np.minimum(lengths - (where * lengths).astype(np.int64), self._capacity)

    def full_room(self, windows: np.ndarray) -> np.ndarray:
        """The text tokens of windows that start at their ``full_starts``: int64 [B]."""
        chunks, _ = self._find(windows)
        return np.minimum(self._lengths[chunks].astype(np.int64), self._capacity)

    def is_cut(self, chunks: np.ndarray, at_end: np.ndarray) -> np.ndarray:
        """Whether a window's end is where a full chunk was cut off, hardly ever a sentence's end.

        Args:
          chunks: int64 [B], the windows' chunks.
          at_end: bool [B], whether they reach their chunk's end.
        """
        return at_end & (self._lengths[chunks] > self._full)

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunk of each window, and how far into it the window starts as a share in [0, 1)."""
        chunks, place = self._find(windows)
        return chunks, place / self._parts[chunks]

    def _find(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunk of each window, and which one of the chunk's it is."""
        chunks = np.searchsorted(self._ends, windows, side="right")
        return chunks, windows - (self._ends[chunks] - self._parts[chunks])
