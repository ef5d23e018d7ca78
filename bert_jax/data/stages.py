"""The stages of a preparation, and what is said of them while they run."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from bert_jax.data.chunking import Chunker
from bert_jax.data.parts import Work
from bert_jax.data.smallest_hashes import SmallestHashes
from bert_jax.data.spool import SpooledRecords


class Progress(NamedTuple):
    """How far a stage has come.

    Attributes:
      stage: what is being done, in words.
      text_bytes: bytes of text read in this stage.
      share: how much of the stage is done, 0 to 1; None where that is not known.
      seconds: how long the stage has taken.
    """

    stage: str
    text_bytes: int
    share: float | None
    seconds: float


Report = Callable[[Progress], None]


class Spooled(NamedTuple):
    """All text as records that are not yet in their order.

    Attributes:
      records: the records.
      bytes_written: their size.
      documents: how many documents were read.
      text_bytes: bytes of text, as UTF-8.
      skipped: lines, files and rows left out because they could not be read.
      source_counts: name, documents and text_bytes of each source.
      hashes: the smallest of the documents' hashes.
    """

    records: SpooledRecords
    bytes_written: int
    documents: int
    text_bytes: int
    skipped: int
    source_counts: list[dict[str, Any]]
    hashes: SmallestHashes


class Stages(Protocol):
    """Who does the work: one process (with helpers), or the workers of a pipeline.

    The results are the same.
    """

    def sample(self, max_characters: int) -> list[str]:
        """Lines of text to learn a vocabulary from, drawn evenly from all of it.

        Raises:
          UserError: something in the input cannot be read.
        """

    def spool(self, chunker: Chunker) -> Spooled:
        """Turns all text into records.

        Raises:
          UserError: something in the input cannot be read.
        """

    def run(self, stage: str, work: Work, elements: Sequence[Any]) -> None:
        """Does work that is none of reading; see ``bert_jax.data.parts.Run``."""
