"""Rows of fixed length from runs of tokens: ``[CLS] A [SEP]`` and ``[CLS] A [SEP] B [SEP]``.

Shapes: B rows, L sequence length, T tokens.
"""

from typing import NamedTuple

import numpy as np

# [CLS] A [SEP], and [CLS] A [SEP] B [SEP].
FRAME_OF_SINGLE, FRAME_OF_PAIR = 2, 3


class SpecialTokens(NamedTuple):
    """Ids of the tokens that frame a row."""

    pad: int
    cls: int
    sep: int


class Framed(NamedTuple):
    """Model inputs.

    Attributes:
      token_ids_BL: int32.
      segment_ids_BL: int32, 0 for ``[CLS] A [SEP]`` and padding, 1 for ``B [SEP]``.
      lengths_B: int32, the number of real tokens, which come first.
    """

    token_ids_BL: np.ndarray
    segment_ids_BL: np.ndarray
    lengths_B: np.ndarray


def frame_pairs(
    tokens: np.ndarray,
    first_start: np.ndarray,
    first_length: np.ndarray,
    second_start: np.ndarray,
    second_length: np.ndarray,
    max_length: int,
    special: SpecialTokens,
) -> Framed:
    """Lays ``[CLS] A [SEP] B [SEP]`` out.

    Args:
      tokens: int32 [T].
      first_start, first_length: int [B], A's runs of tokens.
      second_start, second_length: int [B], B's.
      max_length: L, at least the longest A and B together and ``FRAME_OF_PAIR``.
      special: ids of the framing tokens.
    """
    column = np.arange(max_length)
    first_end = (1 + first_length)[:, None]  # the column of the [SEP] after A
    second_end = first_end + (1 + second_length)[:, None]  # and of the one after B
    in_second_BL = column > first_end
    source_BL = np.where(
        in_second_BL,
        column - first_end - 1 + second_start[:, None],
        column - 1 + first_start[:, None],
    )
    token_ids_BL = _tokens_at(tokens, source_BL)
    token_ids_BL[:, 0] = special.cls
    token_ids_BL[(column == first_end) | (column == second_end)] = special.sep
    token_ids_BL[column > second_end] = special.pad
    return Framed(
        token_ids_BL=token_ids_BL,
        segment_ids_BL=(in_second_BL & (column <= second_end)).astype(np.int32),
        lengths_B=(second_end[:, 0] + 1).astype(np.int32),
    )


def frame_singles(
    tokens: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    max_length: int,
    special: SpecialTokens,
) -> Framed:
    """Lays ``[CLS] A [SEP]`` out.

    Args:
      tokens: int32 [T].
      start, length: int [B], A's runs of tokens.
      max_length: L, at least the longest A and ``FRAME_OF_SINGLE``.
      special: ids of the framing tokens.
    """
    column = np.arange(max_length)
    end = (1 + length)[:, None]
    token_ids_BL = _tokens_at(tokens, start[:, None] + column - 1)
    token_ids_BL[:, 0] = special.cls
    token_ids_BL[column == end] = special.sep
    token_ids_BL[column > end] = special.pad
    return Framed(
        token_ids_BL=token_ids_BL,
        segment_ids_BL=np.zeros_like(token_ids_BL),
        lengths_B=(length + FRAME_OF_SINGLE).astype(np.int32),
    )


def truncated_lengths(
    first: np.ndarray, second: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths left when the longer segment loses one token at a time until both fit the target.

    The closed form of BERT's ``truncate_seq_pair``; of two equal segments, the second loses.
    """
    excess = np.maximum(first + second - target, 0)
    until_equal = np.minimum(excess, np.abs(first - second))
    after = excess - until_equal
    first_cut = np.where(first > second, until_equal, 0) + after // 2
    second_cut = np.where(first > second, 0, until_equal) + (after + 1) // 2
    return first - first_cut, second - second_cut


def _tokens_at(tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A copy; at positions that are none, any ids, which the frame or the padding replaces."""
    if not tokens.size:
        return np.zeros(positions.shape, np.int32)
    return tokens.take(positions, mode="clip")
