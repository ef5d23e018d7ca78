"""Which documents are for validation: those with the smallest hashes."""

import heapq
from collections.abc import Iterable

# A validation split of up to so many documents has exactly its share of them; a larger one follows
# from a bound on the hash alone, so that memory does not grow with the corpus.
_EXACT_VALIDATION_DOCUMENTS = 1000
_HASHES = 1 << 64


class SmallestHashes:
    """The smallest distinct hashes seen, up to a fixed number of them.

    Args:
      size: how many to keep.
    """

    def __init__(self, size: int = _EXACT_VALIDATION_DOCUMENTS + 1):
        self._size = size
        self._negated: list[int] = []
        self._members: set[int] = set()

    def add(self, number: int) -> None:
        """Adds a document's hash."""
        if number in self._members:
            return
        if len(self._negated) == self._size:
            if number > -self._negated[0]:
                return
            self._members.remove(-heapq.heappop(self._negated))
        heapq.heappush(self._negated, -number)
        self._members.add(number)

    def update(self, numbers: Iterable[int]) -> None:
        """Adds several, such as the smallest of a part of the input."""
        for number in numbers:
            self.add(number)

    @property
    def smallest(self) -> list[int]:
        """The hashes that are kept, rising."""
        return sorted(self._members)

    def last_validation_hash(self, documents: int, share: float) -> int | None:
        """The largest hash of a validation document; None if there is no validation split.

        Args:
          documents: how many documents were added.
          share: the share of them that is for validation, 0 to below 1.
        """
        smallest = self.smallest
        if share == 0 or len(smallest) < 2:
            return None
        # Two, if the corpus has them to spare: a random next segment is from another document.
        wanted = max(2 if documents >= 4 else 1, round(share * documents))
        if wanted < len(smallest):
            return smallest[wanted - 1]
        if len(smallest) < self._size:  # these are all; at least one must be left for training
            return smallest[-2]
        return int(share * _HASHES)
