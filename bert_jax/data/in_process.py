"""A preparation by this process, which reads and writes, and by others that it has tokenise."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_jax.data.chunking import Chunker, chunk_batches
from bert_jax.data.chunks import record_dtype
from bert_jax.data.documents import Piece, Source, Tally, batch_pieces, number_pieces
from bert_jax.data.parts import Work
from bert_jax.data.spool import Spool, SpooledRecords
from bert_jax.data.stages import Progress, Report, Spooled
from bert_jax.data.vocabulary_sample import VocabularySample, piece_key
from bert_jax.storage import local_place


class InProcess:
    """The stages of a preparation on one machine; see ``bert_jax.data.stages.Stages``.

    Args:
      sources: the input.
      scratch: a directory that exists.
      workers: processes that tokenise; 0 does it in this one.
      report: is called with the progress, many times.
    """

    def __init__(self, sources: Sequence[Source], scratch: Path, workers: int, report: Report):
        self._sources = sources
        self._scratch = scratch
        self._workers = workers
        self._report = report

    def sample(self, max_characters: int) -> list[str]:
        """Lines of text to learn a vocabulary from; all text is read once."""
        sample = VocabularySample(max_characters)
        pieces = self._read(Tally(), "reading for the vocabulary", [])
        for number, piece in enumerate(pieces):
            sample.add(piece_key(piece, 0, number), len(piece.text), piece.text)
        return sample.lines()

    def spool(self, chunker: Chunker) -> Spooled:
        """Turns all text into records; it is read once."""
        tally = Tally()
        source_counts: list[dict[str, Any]] = []
        pieces = self._read(tally, "tokenising", source_counts)
        directory = self._scratch / "spool"
        with local_place(directory) as local, Spool(local) as spool:
            for records in chunk_batches(batch_pieces(pieces), chunker, workers=self._workers):
                spool.add(records)
        return Spooled(
            SpooledRecords((directory,), record_dtype(chunker.tokenizer.size)),
            spool.bytes_written,
            tally.documents,
            tally.text_bytes,
            tally.skipped,
            source_counts,
            spool.hashes,
        )

    def run(self, stage: str, work: Work, elements: Sequence[Any]) -> None:
        """Does the work here, element after element."""
        start = time.monotonic()
        for number, element in enumerate(elements):
            self._report(Progress(stage, 0, number / len(elements), time.monotonic() - start))
            work(element)

    def _read(
        self, tally: Tally, stage: str, source_counts: list[dict[str, Any]]
    ) -> Iterator[Piece]:
        """The pieces of all sources; reports progress and appends each source's counts."""
        start = time.monotonic()
        sizes = [source.disk_bytes for source in self._sources]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        self._report(Progress(stage, 0, None, 0.0))
        for source in self._sources:
            documents, text_bytes = tally.documents, tally.text_bytes
            for piece in number_pieces(source, tally):
                share = tally.disk_bytes / total if total else None
                self._report(Progress(stage, tally.text_bytes, share, time.monotonic() - start))
                yield piece
            source_counts.append(
                {
                    "name": source.name,
                    "documents": tally.documents - documents,
                    "text_bytes": tally.text_bytes - text_bytes,
                }
            )
