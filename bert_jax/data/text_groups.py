"""Rows that hold several texts each: the choices of a question, the two texts of a pair.

Shapes: N rows, B rows of a batch, C texts of a row, L sequence length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.chunks import offsets_of
from bert_jax.data.text_rows import TextRows, make_text_rows
from bert_jax.data.tokenizer import WordPieceTokenizer


@dataclass(frozen=True)
class TextGroups:
    """Rows of one or more neighbouring texts; made by ``group_texts``.

    Attributes:
      texts: the texts of all rows.
      starts: int64 [N], each row's first text.
      counts: int64 [N], how many texts it has, at least one.
    """

    texts: TextRows
    starts: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row's longest text, special ones included: int64 [N]."""
        return np.maximum.reduceat(self.texts.lengths, self.starts)

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """Model inputs, where C is the most texts that any of the N rows has.

        Args:
          numbers: int [B], rows.
          max_length: L, no less than the longest text of them.

        Returns:
          int32 ``token_ids``, ``segment_ids`` [B, C, L] and ``lengths`` [B, C]: zeros where a row
          has fewer texts.
        """
        place_C = np.arange(self.counts.max())
        real_BC = place_C < self.counts[numbers][:, None]
        # The row's first text stands in for what it lacks, because that fits.
        text_BC = self.starts[numbers][:, None] + np.where(real_BC, place_C, 0)
        flat = self.texts.rows(text_BC.ravel(), max_length)
        lengths_BC = flat["lengths"].reshape(real_BC.shape) * real_BC
        return {"lengths": lengths_BC} | {
            name: flat[name].reshape(*real_BC.shape, max_length) * real_BC[..., None]
            for name in ("token_ids", "segment_ids")
        }


def group_texts(
    first: Sequence[str],
    second: Sequence[str] | None,
    counts: Sequence[int],
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
) -> TextGroups:
    """Tokenises texts, or pairs of texts, of which neighbours form a row.

    Args:
      first: A of each text, those of the first row first.
      second: B of each text; None for single texts.
      counts: how many texts each row has; at least one.
      tokenizer: the vocabulary.
      max_length: the most tokens of a text, special ones included; what is longer is cut, as by
        ``make_text_rows``.

    Raises:
      UserError: ``max_length`` leaves no room for text.
    """
    texts = make_text_rows(first, second, tokenizer, max_length=max_length)
    counts_N = np.asarray(counts, np.int64)
    return TextGroups(texts, offsets_of(counts_N)[:-1], counts_N)
