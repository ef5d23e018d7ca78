"""Rows of tokens that are held in memory, and batches of them."""

from collections.abc import Sequence
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


def join_batches(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The examples of several batches, which are padded to the same length, as one batch."""
    if len(batches) == 1:
        return batches[0]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def pad_batch(batch: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Fills a batch up to ``rows`` examples with zeros: no tokens, no weight."""
    missing = rows - len(batch["lengths"])
    return {
        name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        for name, array in batch.items()
    }
