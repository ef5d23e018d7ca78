"""Which windows of text a source's chunks offer, known from their lengths alone.

Shapes: B windows.
"""

import numpy as np

# A full chunk may lack so many tokens: it is not cut inside a word.
_WORD_PIECES = 8


class WindowIndex:
    """Numbers the windows that a source's chunks offer to rows of a given capacity.

    A chunk that fits a row is one window. A corpus that was prepared for longer sequences offers
    each chunk as several windows, so that an epoch still sees every part of the text about once.
    """

    def __init__(self, lengths: np.ndarray, capacity: int):
        self._parts = np.maximum(np.rint(lengths / capacity), 1).astype(np.int64)
        self._ends = np.cumsum(self._parts)
        self._lengths = lengths
        self._capacity = capacity
        self._full = int(lengths.max()) - _WORD_PIECES

    def __len__(self) -> int:
        return int(self._ends[-1])

    def room(self, windows: np.ndarray) -> np.ndarray:
        """The most text tokens of each window, known without reading its chunk: int64 [B]."""
        chunks, where = self.locate(windows)
        lengths = self._lengths[chunks].astype(np.int64)
        return np.minimum(lengths - (where * lengths).astype(np.int64), self._capacity)

    def is_cut(self, chunks: np.ndarray, at_end: np.ndarray) -> np.ndarray:
        """Whether a window's end is where a full chunk was cut off, hardly ever a sentence's end.

        Args:
          chunks: int64 [B], the windows' chunks.
          at_end: bool [B], whether they reach their chunk's end.
        """
        return at_end & (self._lengths[chunks] > self._full)

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunk of each window, and how far into it the window starts as a share in [0, 1)."""
        chunks = np.searchsorted(self._ends, windows, side="right")
        parts = self._parts[chunks]
        return chunks, (windows - (self._ends[chunks] - parts)) / parts
