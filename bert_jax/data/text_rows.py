"""Rows of single texts and of pairs, tokenised once and kept in memory.

Shapes: N rows, T tokens, B rows of a batch, L sequence length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.chunks import offsets_of
from bert_jax.data.framing import (
    FRAME_OF_PAIR,
    FRAME_OF_SINGLE,
    SpecialTokens,
    frame_pairs,
    frame_singles,
    truncated_lengths,
)
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError


@dataclass(frozen=True)
class TextRows:
    """Texts as rows ``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]``; made by ``make_text_rows``.

    Attributes:
      tokens: int32 [T], the tokens of all texts.
      first_starts, first_lengths: int64 [N], the tokens of A that a row holds.
      second_starts, second_lengths: int64 [N], the same of B; empty where there are no pairs.
      special: ids of the framing tokens.
    """

    tokens: np.ndarray
    first_starts: np.ndarray
    first_lengths: np.ndarray
    second_starts: np.ndarray
    second_lengths: np.ndarray
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.first_starts)

    @property
    def _are_pairs(self) -> bool:
        return len(self.second_starts) > 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, special ones included: int64 [N]."""
        if self._are_pairs:
            return self.first_lengths + self.second_lengths + FRAME_OF_PAIR
        return self.first_lengths + FRAME_OF_SINGLE

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """Model inputs.

        Args:
          numbers: int [B], rows.
          max_length: L, no less than the longest of them.

        Returns:
          int32 ``token_ids``, ``segment_ids`` [B, L] and ``lengths`` [B].
        """
        first = self.first_starts[numbers], self.first_lengths[numbers]
        if self._are_pairs:
            second = self.second_starts[numbers], self.second_lengths[numbers]
            framed = frame_pairs(self.tokens, *first, *second, max_length, self.special)
        else:
            framed = frame_singles(self.tokens, *first, max_length, self.special)
        return {
            "token_ids": framed.token_ids_BL,
            "segment_ids": framed.segment_ids_BL,
            "lengths": framed.lengths_B,
        }


def make_text_rows(
    first: Sequence[str],
    second: Sequence[str] | None,
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
) -> TextRows:
    """Tokenises texts, and cuts at the end what is too long.

    Of a pair the longer text loses, token by token, as in BERT's ``truncate_seq_pair``, and of two
    equally long ones B (in transformers' ``longest_first``, A).

    Args:
      first: A of each row.
      second: B of each row; None for single texts.
      tokenizer: the vocabulary.
      max_length: the most tokens of a row, special ones included.

    Raises:
      UserError: ``max_length`` leaves no room for text.
    """
    frame = FRAME_OF_SINGLE if second is None else FRAME_OF_PAIR
    if max_length < frame + 2:
        raise UserError(f"max_length={max_length} leaves no room for text; give at least 8")
    # Each distinct text is kept once: a context may stand in many rows.
    distinct: dict[str, int] = {}
    numbers = [distinct.setdefault(text, len(distinct)) for text in (*first, *(second or ()))]
    tokens, lengths = tokenizer.encode_flat(list(distinct))
    starts, lengths = offsets_of(lengths)[:-1][numbers], lengths[numbers]
    rows, room = len(first), max_length - frame
    special = SpecialTokens(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    if second is None:
        none = np.zeros(0, np.int64)
        return TextRows(tokens, starts, np.minimum(lengths, room), none, none, special)
    targets = np.full(rows, room)
    cut_first, cut_second = truncated_lengths(lengths[:rows], lengths[rows:], targets)
    return TextRows(tokens, starts[:rows], cut_first, starts[rows:], cut_second, special)
