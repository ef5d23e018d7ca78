"""The text that a vocabulary is learnt from, drawn evenly from all, whoever reads it."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from bert_jax.data.documents import Piece

_HASHES = 1 << 64


class PieceKey(NamedTuple):
    """What draws a piece and orders those that are drawn.

    Attributes:
      hash: 64 bits that differ between the pieces of one document.
      part: which part of the input it is from.
      number: which piece of that part it is.
    """

    hash: int
    part: int
    number: int


def piece_key(piece: Piece, part: int, number: int) -> PieceKey:
    """The key of a piece that is the ``number``-th of a part of the input."""
    mixed = (piece.document_hash + piece.part * 0x9E3779B97F4A7C15) % _HASHES
    return PieceKey(mixed, part, number)


class VocabularySample:
    """The pieces with the smallest keys, as many as have ``max_characters`` together.

    The smallest is in it in any case. Which pieces are kept does not depend on the order in which
    they are added, so that samples of parts of the input can be merged into that of the whole.

    Args:
      max_characters: how many characters to keep at most.

    Attributes:
      bound: the smallest key that was left out, None if there is none.
    """

    def __init__(self, max_characters: int):
        self._max_characters = max_characters
        self._kept: list[tuple[int, int, int, int, str]] = []  # the largest key first
        self._kept_characters = 0
        self.bound: PieceKey | None = None

    def add(self, key: PieceKey, characters: int, text: str = "") -> None:
        """Adds a piece, which is kept for the time being if it is among the smallest.

        Args:
          key: its key.
          characters: how many characters it has.
          text: the text, where that is to be kept.
        """
        if self.bound is not None and key >= self.bound:
            return
        heapq.heappush(self._kept, (-key.hash, -key.part, -key.number, characters, text))
        self._kept_characters += characters
        while self._kept_characters > self._max_characters and len(self._kept) > 1:
            hash_, part, number, left_out, _ = heapq.heappop(self._kept)
            self.bound = PieceKey(-hash_, -part, -number)
            self._kept_characters -= left_out

    def exclude(self, bound: PieceKey) -> None:
        """Leaves out all pieces from a key on, as a sample that is to be merged has done."""
        if self.bound is None or bound < self.bound:
            self.bound = bound
        while self._kept and PieceKey(*(-n for n in self._kept[0][:3])) >= self.bound:
            self._kept_characters -= heapq.heappop(self._kept)[3]

    def pieces(self) -> Iterator[tuple[PieceKey, int, str]]:
        """(Key, characters, text) of what is kept, in the order of the input."""
        for hash_, part, number, characters, text in sorted(
            self._kept, key=lambda entry: (-entry[1], -entry[2])
        ):
            yield PieceKey(-hash_, -part, -number), characters, text

    def lines(self) -> list[str]:
        """The lines of the texts that are kept, in the order of the input."""
        return [line for _, _, text in self.pieces() for line in text.splitlines()]
