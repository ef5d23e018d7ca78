"""The preparation of a large corpus: passes over parts of the input, which any worker can do.

A pass does one piece of work for each part; what it finds goes into a file for each part below one
directory, on a disk or in an object store that all workers see. Nothing else passes between them,
so that memory does not grow with the input, and work that is done twice does no harm.

1. *Survey*: how many documents each part has, so that they can be numbered, and the hashes that
   decide which are for validation and which text the vocabulary is learnt from.
2. *Sample*: that text, where there is a vocabulary to learn.
3. *Spool*: documents become records, which lie in 128 files a part by their key.

The records are then written shard by shard (``bert_jax.data.builder``). The result is that of one
process (``bert_jax.data.preparation``): no key and no order depends on who did what.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bert_jax.data.chunking import Chunker, chunk_batches
from bert_jax.data.documents import Piece, Source, Tally, batch_pieces, number_pieces
from bert_jax.data.spool import Spool
from bert_jax.data.vocabulary_sample import PieceKey, VocabularySample, piece_key
from bert_jax.errors import UserError
from bert_jax.storage import local_place


class Work(Protocol):
    """A piece of work; picklable."""

    def __call__(self, element: Any, /) -> None:
        """Does the work for one element."""


class Run(Protocol):
    """Who does the work: this process or a Beam pipeline."""

    def __call__(self, stage: str, work: Work, elements: Sequence[Any]) -> None:
        """Calls ``work`` with every element at least once, in any order and any process.

        Args:
          stage: what is being done, in words.
          work: what to do.
          elements: what to do it for; picklable.
        """


class Part(NamedTuple):
    """A part of the input.

    Attributes:
      number: parts are counted over all sources, in their order.
      source: what to read.
    """

    number: int
    source: Source


class NumberedPart(NamedTuple):
    """A part whose documents are numbered.

    Attributes:
      part: the part.
      first_document: the number of its first document.
    """

    part: Part
    first_document: int


class PartSurvey(NamedTuple):
    """What is known of a part.

    Attributes:
      documents: how many documents it has.
      text_bytes: bytes of text, as UTF-8.
      skipped: lines, files and rows left out because they could not be read.
      sample: (hash, part, number, characters) of its pieces that may be in the vocabulary's sample.
      bound: the smallest key that cannot be, None if there is none.
    """

    documents: int
    text_bytes: int
    skipped: int
    sample: list[list[int]]
    bound: list[int] | None


@dataclass(frozen=True)
class SurveyPart:
    """The first pass; writes a ``PartSurvey``.

    Attributes:
      directory: where to.
      sample_characters: how much text a vocabulary is learnt from; 0 if none is.
    """

    directory: Path
    sample_characters: int

    def __call__(self, part: Part) -> None:
        """Reads one part."""
        _write_result(self.directory, part, self._survey)

    def _survey(self, part: Part) -> PartSurvey:
        tally = Tally()
        sample = VocabularySample(self.sample_characters)
        for number, piece in enumerate(number_pieces(part.source, tally)):
            if self.sample_characters:
                sample.add(piece_key(piece, part.number, number), len(piece.text))
        return PartSurvey(
            tally.documents,
            tally.text_bytes,
            tally.skipped,
            [[*key, characters] for key, characters, _ in sample.pieces()],
            None if sample.bound is None else list(sample.bound),
        )


@dataclass(frozen=True)
class SamplePart:
    """The second pass; writes the texts of the pieces that are in the vocabulary's sample.

    Attributes:
      directory: where to.
      bound: the smallest key that is not in it; None if all are.
    """

    directory: Path
    bound: PieceKey | None

    def __call__(self, part: Part) -> None:
        """Reads one part."""
        _write_result(self.directory, part, lambda part: list(self._texts(part)))

    def _texts(self, part: Part) -> Iterator[str]:
        for number, piece in enumerate(number_pieces(part.source, Tally())):
            if self.bound is None or piece_key(piece, part.number, number) < self.bound:
                yield piece.text


@dataclass(frozen=True)
class SpoolPart:
    """The third pass; writes a spool, its size and the smallest hashes of its documents.

    Attributes:
      directory: where to.
      chunker: turns pieces of documents into records.
    """

    directory: Path
    chunker: Chunker

    def __call__(self, numbered: NumberedPart) -> None:
        """Reads one part and tokenises it."""
        _write_result(
            self.directory, numbered.part, lambda part: self._spool(part, numbered.first_document)
        )

    def _spool(self, part: Part, first_document: int) -> dict[str, Any]:
        tally = Tally(documents=first_document)
        pieces: Iterator[Piece] = number_pieces(part.source, tally)
        with local_place(spool_directory(self.directory, part)) as local:
            if local.exists():  # left by a worker that died
                for file in local.iterdir():
                    file.unlink()
                local.rmdir()
            with Spool(local) as spool:
                for records in chunk_batches(batch_pieces(pieces), self.chunker, workers=0):
                    spool.add(records)
        return {
            "documents": tally.documents - first_document,
            "text_bytes": tally.text_bytes,
            "bytes_written": spool.bytes_written,
            "smallest_hashes": spool.hashes.smallest,
        }


def spool_directory(directory: Path, part: Part) -> Path:
    """Where the records of a part are."""
    return directory / f"{part.number:06d}"


def read_results(directory: Path, parts: Sequence[Part]) -> Iterator[Any]:
    """What a pass found, part by part.

    Raises:
      UserError: the input of a part cannot be used.
    """
    for part in parts:
        result = json.loads(_result_file(directory, part).read_bytes())
        if "error" in result:
            raise UserError(result["error"])
        yield result["found"]


def _write_result(directory: Path, part: Part, work: Any) -> None:
    # An exception of a worker reaches nobody in one piece; the first of them all, in the order of
    # the input, is raised when the results are read.
    try:
        result = {"found": work(part)}
    except UserError as error:
        result = {"error": str(error)}
    _result_file(directory, part).write_bytes(json.dumps(result).encode())


def _result_file(directory: Path, part: Part) -> Path:
    return directory / f"{part.number:06d}.json"
