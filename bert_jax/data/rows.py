"""Rows of tokens that are held in memory, and batches of them."""

from typing import Protocol

import numpy as np


class Rows(Protocol):
    """Rows of tokens by number, ready to be padded and stacked."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """Real tokens of each row."""

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """Arrays of some rows, padded to a length; the first axis counts rows."""


def pad_batch(batch: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Fills a batch up to ``rows`` examples with zeros: no tokens, no weight."""
    missing = rows - len(batch["lengths"])
    return {
        name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        for name, array in batch.items()
    }
