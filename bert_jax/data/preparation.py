"""Text to a corpus, from end to end: read, learn a vocabulary, chunk, split, write."""

import contextlib
import dataclasses
import heapq
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_jax.data.builder import TRAIN, VALIDATION, BertCorpus, SplitRecords
from bert_jax.data.chunking import Chunker, chunk_batches
from bert_jax.data.chunks import (
    MAX_CHUNK_TOKENS,
    MIN_CHUNK_TOKENS,
    SPECIAL_TOKENS_AROUND_CHUNK,
    record_dtype,
)
from bert_jax.data.corpus import Corpus, open_corpus
from bert_jax.data.documentation import Documentation
from bert_jax.data.documents import Piece, Source, Tally, batch_pieces, number_pieces
from bert_jax.data.spool import Spool
from bert_jax.data.text_files import BadInput, DocumentUnit, TextFiles, find_files
from bert_jax.data.tfds_text import PREFIX as TFDS_PREFIX
from bert_jax.data.tfds_text import TfdsText
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.data.vocabulary_extension import extend_vocabulary
from bert_jax.errors import UserError

DOCUMENTATION = "docs"
# A validation split of up to so many documents has exactly its share of them; a larger one follows
# from a bound on the hash alone, so that memory does not grow with the corpus.
_EXACT_VALIDATION_DOCUMENTS = 1000
_HASHES = 1 << 64


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """How a corpus is prepared.

    Attributes:
      vocabulary: a vocab.txt, a tokenizer.json, a prepared corpus's directory, or a tokenizer; None
        trains one.
      new_words: how many words of the text to add to a given vocabulary, at most.
      vocabulary_size: how many tokens a trained vocabulary has.
      vocabulary_megabytes: how much text it is trained on, or extended from, at most; drawn evenly
        from the input.
      lowercase: None is true for a trained vocabulary, and what a given one says.
      max_length: the longest row that the corpus is for, special tokens included.
      document_unit: what a document is in text files.
      text_field: the key or feature of the text in JSON lines and TFDS data sets; None is "text".
      validation_share: the share of documents in the validation split.
      bad_input: whether unreadable input stops the program or is left out and counted.
      language: the language code by which sentences are split.
      wrapped_lines: whether a single line break is a space.
      tfds_split: the split to read of TFDS data sets.
      data_dir: where TFDS keeps its data.
      workers: processes; 0 works in this one. The corpus does not depend on it.
      overwrite: whether a corpus that stands at the output is replaced.
    """

    vocabulary: str | WordPieceTokenizer | None = None
    new_words: int = 0
    vocabulary_size: int = 30522
    vocabulary_megabytes: float = 100.0
    lowercase: bool | None = None
    max_length: int = 512
    document_unit: DocumentUnit = "file"
    text_field: str | None = None
    validation_share: float = 0.01
    bad_input: BadInput = "stop"
    language: str = "en"
    wrapped_lines: bool = False
    tfds_split: str = "train"
    data_dir: str | None = None
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Progress:
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


def prepare_corpus(
    inputs: Sequence[str],
    output: str | Path,
    options: PrepareOptions,
    *,
    report: Report = lambda progress: None,
) -> Corpus:
    """Prepares a corpus and opens it.

    The text is read once (twice if a vocabulary is trained) and never held as a whole. The
    directory appears when it is complete; if anything is raised, nothing of it stays.

    Args:
      inputs: globs, files, directories, ``docs`` or ``tfds:NAME``.
      output: the corpus's directory.
      options: how to prepare it.
      report: is called with the progress, many times.

    Returns:
      The corpus; its metadata has the seconds of each stage.

    Raises:
      UserError: the input cannot be used, an option is out of range, or the output stands already.
    """
    _check(options)
    output = Path(output).expanduser()
    _check_output(output, overwrite=options.overwrite)
    sources = make_sources(inputs, options)
    with _new_directory(output) as directory:
        start = time.monotonic()
        tokenizer, new_words = _tokenizer(sources, options, report)
        tokenizer_seconds = time.monotonic() - start
        _write(directory, sources, tokenizer, new_words, tokenizer_seconds, options, report)
    return open_corpus(output)


def make_sources(inputs: Sequence[str], options: PrepareOptions) -> list[Source]:
    """The sources that the inputs name. A file that two inputs name is read once.

    Raises:
      UserError: an input names nothing.
    """
    sources: list[Source] = []
    seen: set[Path] = set()
    for name in dict.fromkeys(inputs):
        if name == DOCUMENTATION:
            sources.append(Documentation(workers=options.workers))
        elif name.startswith(TFDS_PREFIX):
            sources.append(TfdsText(name, options.tfds_split, options.text_field, options.data_dir))
        else:
            paths = tuple(path for path in find_files(name) if path.resolve() not in seen)
            seen.update(path.resolve() for path in paths)
            text_field = options.text_field or "text"
            sources.append(
                TextFiles(name, paths, options.document_unit, text_field, options.bad_input)
            )
    if not sources:
        raise UserError("There is nothing to prepare; name text with --input")
    return sources


def _check(options: PrepareOptions) -> None:
    longest = MAX_CHUNK_TOKENS + SPECIAL_TOKENS_AROUND_CHUNK
    shortest = MIN_CHUNK_TOKENS + SPECIAL_TOKENS_AROUND_CHUNK
    if not shortest <= options.max_length <= longest:
        raise UserError(
            f"--max_length {options.max_length} is out of range; give {shortest} to {longest}"
        )
    if not 0 <= options.validation_share < 1:
        raise UserError(
            f"--validation_share {options.validation_share} is no share; give 0 to below 1"
        )
    if options.vocabulary_megabytes <= 0:
        raise UserError(
            f"--vocabulary_megabytes {options.vocabulary_megabytes} leaves no text; give more"
        )
    if options.new_words < 0:
        raise UserError(f"--extend_vocabulary {options.new_words} is no number of words")
    if options.new_words and options.vocabulary is None:
        raise UserError("--extend_vocabulary needs --vocabulary, the one to extend")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers} is no number of processes; give 0 or more")


def _check_output(output: Path, *, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir() or {path.name for path in output.iterdir()} != {BertCorpus.name}:
        raise UserError(f"{output} holds something besides a corpus; give another --output")
    if not overwrite:
        raise UserError(f"{output} holds a corpus; give --overwrite to replace it")


@contextlib.contextmanager
def _new_directory(output: Path) -> Iterator[Path]:
    """A directory that becomes ``output`` when the block ends well, and vanishes otherwise."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{output.name}.incomplete-", dir=output.parent))
    except OSError as error:
        raise UserError(
            f"{output.parent} cannot be written ({error.strerror}); give another --output"
        ) from None
    try:
        directory.chmod(0o777 & ~_umask())
        yield directory
        if output.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old-", dir=output.parent))
            os.replace(output, old)
            os.replace(directory, output)
            shutil.rmtree(old)
        else:
            os.replace(directory, output)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _tokenizer(
    sources: list[Source], options: PrepareOptions, report: Report
) -> tuple[WordPieceTokenizer, int]:
    """The vocabulary, and how many of its tokens were added to the one that was given."""
    given = None
    if options.vocabulary is not None:
        given = _given_tokenizer(options.vocabulary, options.lowercase)
        if not options.new_words:
            return given, 0
    texts = _sample(sources, int(options.vocabulary_megabytes * 1e6), report)
    if given is not None:
        report(Progress("extending the vocabulary", 0, None, 0.0))
        extended = extend_vocabulary(given, texts, options.new_words)
        return extended, extended.size - given.size
    report(Progress("learning the vocabulary", 0, None, 0.0))
    trained = WordPieceTokenizer.train(
        texts,
        size=options.vocabulary_size,
        lowercase=True if options.lowercase is None else options.lowercase,
    )
    return trained, 0


def _given_tokenizer(
    vocabulary: str | WordPieceTokenizer, lowercase: bool | None
) -> WordPieceTokenizer:
    if isinstance(vocabulary, str):
        path = Path(vocabulary).expanduser()
        if not path.is_dir():
            return WordPieceTokenizer.from_file(path, lowercase=lowercase)
        vocabulary = open_corpus(path).tokenizer
    if lowercase not in (None, vocabulary.lowercase):
        raise UserError(
            f"the given vocabulary is {'uncased' if vocabulary.lowercase else 'cased'}; leave "
            f"--{'uncased' if lowercase else 'cased'} out"
        )
    return vocabulary


def _sample(sources: list[Source], max_bytes: int, report: Report) -> list[str]:
    """Lines of the documents with the smallest hashes, ``max_bytes`` of them at most."""
    kept: list[tuple[int, int, str]] = []
    kept_bytes = 0
    for number, piece in enumerate(_read(sources, Tally(), "reading for the vocabulary", report)):
        heapq.heappush(kept, (-_hash_of_part(piece), -number, piece.text))
        kept_bytes += len(piece.text)
        while kept_bytes > max_bytes and len(kept) > 1:
            kept_bytes -= len(heapq.heappop(kept)[2])
    in_order = sorted(kept, key=lambda entry: -entry[1])
    return [line for _, _, text in in_order for line in text.splitlines()]


def _hash_of_part(piece: Piece) -> int:
    """64 bits that differ between the pieces of one document."""
    return (piece.document_hash + piece.part * 0x9E3779B97F4A7C15) % _HASHES


def _read(
    sources: Sequence[Source],
    tally: Tally,
    stage: str,
    report: Report,
    counts: list[dict[str, Any]] | None = None,
) -> Iterator[Piece]:
    """The pieces of all sources; reports progress and appends each source's counts."""
    start = time.monotonic()
    sizes = [source.disk_bytes for source in sources]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    report(Progress(stage, 0, None, 0.0))
    for source in sources:
        documents, text_bytes = tally.documents, tally.text_bytes
        for piece in number_pieces(source, tally):
            share = tally.disk_bytes / total if total else None
            report(Progress(stage, tally.text_bytes, share, time.monotonic() - start))
            yield piece
        if counts is not None:
            counts.append(
                {
                    "name": source.name,
                    "documents": tally.documents - documents,
                    "text_bytes": tally.text_bytes - text_bytes,
                }
            )


class _SmallestHashes:
    """The smallest distinct hashes seen, up to a fixed number of them."""

    def __init__(self, size: int):
        self._size = size
        self._negated: list[int] = []
        self._members: set[int] = set()

    def add(self, number: int) -> None:
        if number in self._members:
            return
        if len(self._negated) == self._size:
            if number > -self._negated[0]:
                return
            self._members.remove(-heapq.heappop(self._negated))
        heapq.heappush(self._negated, -number)
        self._members.add(number)

    def last_validation_hash(self, documents: int, share: float) -> int | None:
        """The largest hash of a validation document; None if there is no validation split."""
        smallest = sorted(self._members)
        if share == 0 or len(smallest) < 2:
            return None
        # Two, if the corpus has them to spare: a random next segment is from another document.
        wanted = max(2 if documents >= 4 else 1, round(share * documents))
        if wanted < len(smallest):
            return smallest[wanted - 1]
        if len(smallest) < self._size:  # these are all; at least one must be left for training
            return smallest[-2]
        return int(share * _HASHES)


def _write(
    directory: Path,
    sources: list[Source],
    tokenizer: WordPieceTokenizer,
    new_words: int,
    tokenizer_seconds: float,
    options: PrepareOptions,
    report: Report,
) -> None:
    start = time.monotonic()
    tally = Tally()
    source_counts: list[dict[str, Any]] = []
    hashes = _SmallestHashes(_EXACT_VALIDATION_DOCUMENTS + 1)

    def pieces() -> Iterator[Piece]:
        for piece in _read(sources, tally, "tokenising", report, source_counts):
            if piece.part == 0:
                hashes.add(piece.document_hash)
            yield piece

    chunker = Chunker(tokenizer, options.max_length, options.language, options.wrapped_lines)
    spool_directory = directory / "spool"
    spool = Spool(spool_directory, record_dtype(tokenizer.size))
    with spool:
        for records in chunk_batches(batch_pieces(pieces()), chunker, workers=options.workers):
            spool.add(records)
    if not spool.bytes_written:
        raise UserError(
            f"The input {', '.join(source.name for source in sources)} holds no text to learn "
            "from; check --input"
        )
    report(Progress("writing records", tally.text_bytes, None, time.monotonic() - start))
    last_validation_hash = hashes.last_validation_hash(tally.documents, options.validation_share)
    names = [TRAIN] if last_validation_hash is None else [TRAIN, VALIDATION]
    splits = [
        SplitRecords(
            name,
            spool,
            last_validation_hash,
            documents=tally.documents,
            vocabulary_size=tokenizer.size,
        )
        for name in names
    ]
    builder = BertCorpus(
        data_dir=directory,
        splits=splits,
        spooled_bytes=spool.bytes_written,
        tokenizer=tokenizer,
        max_length=options.max_length,
        description={
            "sources": source_counts,
            "text_bytes": tally.text_bytes,
            "skipped": tally.skipped,
            "new_words": new_words,  # how many of the last tokens --extend_vocabulary added
            "settings": _settings(options),
        },
    )
    builder.write(spool_directory)
    shutil.rmtree(spool_directory)
    builder.info.metadata["seconds"] = {
        "vocabulary": tokenizer_seconds,
        "corpus": time.monotonic() - start,
    }
    builder.info.metadata.save_metadata(builder.data_dir)


def _settings(options: PrepareOptions) -> dict[str, Any]:
    """The options that decide the records, for the reader of the metadata."""
    names = ("document_unit", "language", "text_field", "validation_share", "wrapped_lines")
    return {name: getattr(options, name) for name in names}
