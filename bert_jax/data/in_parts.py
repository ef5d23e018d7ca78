"""A preparation by the workers of a pipeline, seen from the program that starts it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.data.chunking import Chunker
from bert_jax.data.chunks import record_dtype
from bert_jax.data.documents import Source
from bert_jax.data.parts import (
    NumberedPart,
    Part,
    PartSurvey,
    Run,
    SamplePart,
    SpoolPart,
    SurveyPart,
    Work,
    read_results,
    spool_directory,
)
from bert_jax.data.smallest_hashes import SmallestHashes
from bert_jax.data.spool import SpooledRecords
from bert_jax.data.stages import Spooled
from bert_jax.data.vocabulary_sample import PieceKey, VocabularySample
from bert_jax.errors import UserError


class InParts:
    """The stages of a preparation whose input is read in parts; see ``stages.Stages``.

    Args:
      sources: the input.
      scratch: a directory that exists and that all workers see.
      run: who does the work.

    Raises:
      UserError: an input cannot be read in parts.
    """

    def __init__(self, sources: Sequence[Source], scratch: Path, run: Run):
        self._names = [source.name for source in sources]
        of_sources = [source.parts() for source in sources]
        self._counts = [len(parts) for parts in of_sources]
        self._parts = [
            Part(number, source)
            for number, source in enumerate(itertools.chain.from_iterable(of_sources))
        ]
        self._scratch = scratch
        self._run = run
        self._surveys: list[PartSurvey] | None = None

    def sample(self, max_characters: int) -> list[str]:
        """Lines of text to learn a vocabulary from; all text is read twice."""
        merged = VocabularySample(max_characters)
        for survey in self._survey(max_characters):
            if survey.bound is not None:
                merged.exclude(PieceKey(*survey.bound))
            for hash_, part, number, characters in survey.sample:
                merged.add(PieceKey(hash_, part, number), characters)
        directory = self._new_directory("sample")
        self.run("sampling for the vocabulary", SamplePart(directory, merged.bound), self._parts)
        texts = itertools.chain.from_iterable(read_results(directory, self._parts))
        return [line for text in texts for line in text.splitlines()]

    def spool(self, chunker: Chunker) -> Spooled:
        """Turns all text into records; it is read once, after its documents were counted."""
        surveys = self._surveys or self._survey(0)
        directory = self._new_directory("spool")
        firsts = itertools.accumulate((survey.documents for survey in surveys), initial=0)
        self.run(
            "tokenising", SpoolPart(directory, chunker), [*map(NumberedPart, self._parts, firsts)]
        )
        found = list(read_results(directory, self._parts))
        for part, survey, result in zip(self._parts, surveys, found, strict=True):
            if (survey.documents, survey.text_bytes) != (result["documents"], result["text_bytes"]):
                raise UserError(
                    f"The input {part.source.name} changed while it was read (part "
                    f"{part.number + 1} of {len(self._parts)}); prepare it again"
                )
        hashes = SmallestHashes()
        for result in found:
            hashes.update(result["smallest_hashes"])
        return Spooled(
            SpooledRecords(
                tuple(spool_directory(directory, part) for part in self._parts),
                record_dtype(chunker.tokenizer.size),
            ),
            sum(result["bytes_written"] for result in found),
            sum(survey.documents for survey in surveys),
            sum(survey.text_bytes for survey in surveys),
            sum(survey.skipped for survey in surveys),
            self._source_counts(surveys),
            hashes,
        )

    def run(self, stage: str, work: Work, elements: Sequence[Any]) -> None:
        """Has the workers do it."""
        self._run(stage, work, elements)

    def _survey(self, sample_characters: int) -> list[PartSurvey]:
        directory = self._new_directory("survey")
        self.run("counting documents", SurveyPart(directory, sample_characters), self._parts)
        self._surveys = [PartSurvey(*found) for found in read_results(directory, self._parts)]
        return self._surveys

    def _source_counts(self, surveys: Sequence[PartSurvey]) -> list[dict[str, Any]]:
        in_order = iter(surveys)
        counts = []
        for name, parts in zip(self._names, self._counts, strict=True):
            of_source = list(itertools.islice(in_order, parts))
            counts.append(
                {
                    "name": name,
                    "documents": sum(survey.documents for survey in of_source),
                    "text_bytes": sum(survey.text_bytes for survey in of_source),
                }
            )
        return counts

    def _new_directory(self, name: str) -> Path:
        directory = self._scratch / name
        directory.mkdir()
        return directory
