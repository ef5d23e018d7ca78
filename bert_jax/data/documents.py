"""Documents as streams of bounded pieces: what every source of text yields."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

# A document is handed on in pieces of at most so many characters, so that memory is bounded
# whatever its size.
MAX_PIECE_CHARACTERS = 1 << 20


class Passage(NamedTuple):
    """A piece of a document as a source yields it.

    Attributes:
      text: at most ``MAX_PIECE_CHARACTERS`` characters, some of them not white space.
      starts_document: whether it is its document's first piece.
    """

    text: str
    starts_document: bool


class Piece(NamedTuple):
    """A piece of a numbered document.

    Attributes:
      document: the document's number; documents are counted over all sources.
      part: which of the document's pieces it is.
      document_hash: 64 bits that depend on the document's first piece alone, so that equal
        documents have equal hashes.
      text: the text.
    """

    document: int
    part: int
    document_hash: int
    text: str


@dataclass
class Tally:
    """What has been read so far; sources and ``number_pieces`` add to it.

    Attributes:
      disk_bytes: bytes of the input as it lies on disk (compressed, if it is).
      text_bytes: bytes of text, as UTF-8.
      documents: documents begun.
      skipped: lines, files and rows left out because they could not be read.
    """

    disk_bytes: int = 0
    text_bytes: int = 0
    documents: int = 0
    skipped: int = 0


class Source(Protocol):
    """Somewhere that documents come from. It can be read more than once, in the same order."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def disk_bytes(self) -> int | None:
        """Its size on disk, or None where that is not known beforehand."""

    def passages(self, tally: Tally) -> Iterator[Passage]:
        """Its documents; adds to ``tally.disk_bytes`` and ``tally.skipped``.

        Raises:
          UserError: something in it cannot be read.
        """

    def parts(self) -> "Sequence[Source]":
        """Sources that can be read apart; their documents, one part after the other, are its own.

        Raises:
          UserError: it cannot be opened, or read by several.
        """


def whole_document(text: str) -> Iterator[Passage]:
    """The passages of a document that is in memory; none if it is blank."""
    starts_document = True
    for piece in cut_text(text):
        yield Passage(piece, starts_document)
        starts_document = False


def cut_text(text: str) -> Iterator[str]:
    """Cuts a text into pieces that are not blank, at line breaks or else at spaces if there are."""
    start = 0
    while start < len(text):
        end = min(start + MAX_PIECE_CHARACTERS, len(text))
        if end < len(text):
            for separator in ("\n", " "):
                at = text.rfind(separator, start, end)
                if at > start:
                    end = at + 1
                    break
        piece = text[start:end]
        if not piece.isspace():
            yield piece
        start = end


def number_pieces(source: Source, tally: Tally) -> Iterator[Piece]:
    """Numbers a source's documents from ``tally.documents`` on; counts them and their bytes."""
    part = document_hash = 0
    for text, starts_document in source.passages(tally):
        encoded = text.encode("utf-8")
        if starts_document:
            digest = hashlib.blake2b(encoded, digest_size=8).digest()
            document_hash = int.from_bytes(digest, "little")
            part = 0
            tally.documents += 1
        else:
            part += 1
        tally.text_bytes += len(encoded)
        yield Piece(tally.documents - 1, part, document_hash, text)


def batch_pieces(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Gathers pieces into batches of about ``MAX_PIECE_CHARACTERS``, a fit task for a worker."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= MAX_PIECE_CHARACTERS // 2:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
