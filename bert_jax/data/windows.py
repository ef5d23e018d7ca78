"""Windows that slide over token sequences too long for one row.

Everything is vectorised over the windows of all sequences; sequences and windows are numbered.

Shapes: N sequences, W windows, S slots (the tokens of all windows, one window after the other).
"""

from typing import NamedTuple

import numpy as np

from bert_jax.data.chunks import offsets_of


class Windows(NamedTuple):
    """Windows, in the order of their sequences and of their starts.

    Attributes:
      sequences: int64 [W], rising: the sequence that a window is of. None is left out.
      starts: int64 [W], where in its sequence a window starts.
      lengths: int64 [W], how many tokens it holds.
    """

    sequences: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def slide(lengths: np.ndarray, room: np.ndarray, stride: np.ndarray) -> Windows:
    """The windows that google-research/bert's ``run_squad.py`` makes.

    Each is full but a sequence's last one, which ends where the sequence does. A sequence that fits
    one window has one, an empty sequence too.

    Args:
      lengths: int [N], tokens of each sequence.
      room: int [N], how many tokens a window can hold, at least 1.
      stride: int [N], tokens from the start of a window to that of the next, at least 1; where it
        is more than ``room`` it counts as ``room``, so that no token is passed over.
    """
    step = np.minimum(stride, room)
    counts = 1 + -(-np.maximum(lengths - room, 0) // step)
    sequences = np.repeat(np.arange(len(lengths)), counts)
    starts = (np.arange(len(sequences)) - offsets_of(counts)[sequences]) * step[sequences]
    return Windows(sequences, starts, np.minimum(room[sequences], lengths[sequences] - starts))


def has_most_context(windows: Windows) -> np.ndarray:
    """Which window of several that hold a token has most on both sides of it: bool [S].

    It is ``run_squad.py``'s rule: the window with the longest shorter side, and of these the longer
    one (by a hundredth for each of its tokens), and of these the first. So each token of a sequence
    has exactly one window.
    """
    window, place = slots(windows)
    # In floats, as there, so that ties are the same.
    context = (
        np.minimum(place, windows.lengths[window] - 1 - place) + 0.01 * windows.lengths[window]
    )
    ends = np.zeros(int(windows.sequences.max(initial=-1)) + 1, np.int64)
    np.maximum.at(ends, windows.sequences, windows.starts + windows.lengths)
    token = offsets_of(ends)[windows.sequences[window]] + windows.starts[window] + place
    most = np.full(int(ends.sum()), -np.inf)
    np.maximum.at(most, token, context)
    candidates = np.flatnonzero(context == most[token])
    _, first = np.unique(token[candidates], return_index=True)
    chosen = np.zeros(len(token), bool)
    chosen[candidates[first]] = True
    return chosen


def slots(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """For each slot its window, and its place in there: both int64 [S]."""
    window = np.repeat(np.arange(len(windows.lengths)), windows.lengths)
    return window, np.arange(len(window)) - offsets_of(windows.lengths)[window]
