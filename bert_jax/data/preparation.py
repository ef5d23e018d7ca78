"""Text to a corpus, from end to end: read, learn a vocabulary, chunk, split, write."""

import contextlib
import dataclasses
import math
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_jax.data.beam import BeamRun
from bert_jax.data.builder import TRAIN, VALIDATION, BertCorpus, SplitRule
from bert_jax.data.chunking import Chunker
from bert_jax.data.chunks import MAX_CHUNK_TOKENS, MIN_CHUNK_TOKENS, SPECIAL_TOKENS_AROUND_CHUNK
from bert_jax.data.corpus import Corpus, open_corpus, read_vocabulary
from bert_jax.data.documentation import Documentation
from bert_jax.data.documents import Source
from bert_jax.data.in_parts import InParts
from bert_jax.data.in_process import InProcess
from bert_jax.data.stages import Progress, Report, Stages
from bert_jax.data.text_files import BadInput, DocumentUnit, TextFiles, find_files
from bert_jax.data.tfds_text import PREFIX as TFDS_PREFIX
from bert_jax.data.tfds_text import TfdsText
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.data.vocabulary_extension import extend_vocabulary
from bert_jax.errors import UserError, first_line
from bert_jax.storage import as_path, is_remote, remove_directory, store_errors

DOCUMENTATION = "docs"
_INCOMPLETE = ".incomplete-"
_OLD = "old"


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
      beam_runner: the Beam runner whose workers do the work; None works on this machine without
        Beam. The corpus does not depend on it.
      beam_options: options of Beam and of the runner, as ``key=value``.
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
    beam_runner: str | None = None
    beam_options: tuple[str, ...] = ()


def prepare_corpus(
    inputs: Sequence[str],
    output: str | Path,
    options: PrepareOptions,
    *,
    report: Report = lambda progress: None,
) -> Corpus:
    """Prepares a corpus and opens it.

    The text is read once (twice if a vocabulary is trained; once more with Beam) and never held as
    a whole. The directory appears when it is complete; if anything is raised, nothing of it stays.

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
    output = as_path(output)
    run = None
    if options.beam_runner is not None:
        run = BeamRun(options.beam_runner, options.beam_options, options.workers, report)
    with store_errors(output):
        _put_back(output)
        _check_output(output, overwrite=options.overwrite)
    sources = make_sources(inputs, options)
    with _new_directory(output, overwrite=options.overwrite) as directory:
        scratch = directory / "scratch"
        scratch.mkdir()
        stages: Stages
        if run is None:
            stages = InProcess(sources, scratch, options.workers, report)
        else:
            stages = InParts(sources, scratch, run)
        start = time.monotonic()
        tokenizer, new_words = _tokenizer(stages, options, report)
        tokenizer_seconds = time.monotonic() - start
        _write(directory, scratch, stages, tokenizer, new_words, tokenizer_seconds, options)
        remove_directory(scratch)
    return open_corpus(output)


def make_sources(inputs: Sequence[str], options: PrepareOptions) -> list[Source]:
    """The sources that the inputs name. A file that two inputs name is read once.

    Raises:
      UserError: an input names nothing.
    """
    sources: list[Source] = []
    seen: set[str] = set()
    for name in dict.fromkeys(inputs):
        if name == DOCUMENTATION:
            sources.append(Documentation(workers=options.workers))
        elif name.startswith(TFDS_PREFIX):
            sources.append(TfdsText(name, options.tfds_split, options.text_field, options.data_dir))
        else:
            paths = tuple(path for path in find_files(name) if os.path.realpath(path) not in seen)
            seen.update(map(os.path.realpath, paths))
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
    if not 0 < options.vocabulary_megabytes < math.inf:
        raise UserError(
            f"--vocabulary_megabytes {options.vocabulary_megabytes} is no size; give 100, say"
        )
    if options.new_words < 0:
        raise UserError(f"--extend_vocabulary {options.new_words} is no number of words")
    if options.new_words and options.vocabulary is None:
        raise UserError("--extend_vocabulary needs --vocabulary, the one to extend")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers} is no number of processes; give 0 or more")


def _check_output(output: Path, *, overwrite: bool) -> None:
    if not output.exists():
        return
    # What a program that was killed left in it is nobody's.
    names = set()
    if output.is_dir():
        names = {path.name for path in output.iterdir() if not path.name.startswith(_INCOMPLETE)}
        if not names:
            return
    if names != {BertCorpus.name}:
        raise UserError(f"{output} holds something besides a corpus; give another --output")
    if not overwrite:
        raise UserError(f"{output} holds a corpus; give --overwrite to replace it")


def _put_back(output: Path) -> None:
    """Puts a corpus back that a program which was killed had moved away for its own."""
    place = output / BertCorpus.name
    if is_remote(output) or not output.is_dir() or place.exists():
        return
    for old in output.glob(f"{_INCOMPLETE}*/{_OLD}"):
        old.rename(place)
        return


@contextlib.contextmanager
def _new_directory(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A directory whose corpus is in ``output`` when the block ends well; it vanishes otherwise.

    On a disk it comes there at once. In an object store, where nothing can, its files are copied;
    until all are there, what is missing tells that it is no whole corpus.
    """
    token = secrets.token_hex(4)
    # A directory that stands stays, for it may be a link, a mounted disk or where a shell is.
    stands = output.is_dir() and not is_remote(output)
    if stands:
        directory = output / f"{_INCOMPLETE}{token}"
    else:
        directory = output.parent / f".{output.name}{_INCOMPLETE}{token}"
    try:
        with store_errors(output):
            directory.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{directory.parent} cannot be written ({error.strerror or first_line(error)}); give "
            "another --output"
        ) from None
    try:
        yield directory
        if output.exists():  # others may have written there meanwhile
            place = output / BertCorpus.name
            if place.exists() and not overwrite:
                kept = directory.rename(directory.with_name(f"{output.name}-{token}"))
                raise UserError(
                    f"{output} has got a corpus meanwhile, so that the new one is in {kept}; give "
                    "--overwrite to replace what is there"
                )
            _put(directory / BertCorpus.name, place, directory / _OLD)
        else:
            directory.rename(output)
    finally:
        with contextlib.suppress(OSError):
            remove_directory(directory)


def _put(new: Path, place: Path, old: Path) -> None:
    """Moves a directory to its place, and what stands there to another, or nothing."""
    try:
        if place.exists():
            place.rename(old)
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    if old.exists() and not is_remote(old):  # which would copy it, and where nothing is put back
        old.rename(old.with_name("replaced"))  # so that nobody puts back what is half removed


def _tokenizer(
    stages: Stages, options: PrepareOptions, report: Report
) -> tuple[WordPieceTokenizer, int]:
    """The vocabulary, and how many of its tokens were added to the one that was given."""
    given = None
    if options.vocabulary is not None:
        given = _given_tokenizer(options.vocabulary, options.lowercase)
        if not options.new_words:
            return given, 0
    texts = stages.sample(int(options.vocabulary_megabytes * 1e6))
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
        path = as_path(vocabulary)
        with store_errors(path):
            vocabulary = read_vocabulary(path, lowercase)
    if lowercase not in (None, vocabulary.lowercase):
        raise UserError(
            f"the given vocabulary is {'uncased' if vocabulary.lowercase else 'cased'}; leave "
            f"--{'uncased' if lowercase else 'cased'} out"
        )
    return vocabulary


def _write(
    directory: Path,
    scratch: Path,
    stages: Stages,
    tokenizer: WordPieceTokenizer,
    new_words: int,
    tokenizer_seconds: float,
    options: PrepareOptions,
) -> None:
    start = time.monotonic()
    chunker = Chunker(tokenizer, options.max_length, options.language, options.wrapped_lines)
    spooled = stages.spool(chunker)
    if not spooled.bytes_written:
        names = ", ".join(source["name"] for source in spooled.source_counts)
        raise UserError(f"The input {names} holds no text to learn from; check --input")
    last = spooled.hashes.last_validation_hash(spooled.documents, options.validation_share)
    names_of_splits = [TRAIN] if last is None else [TRAIN, VALIDATION]
    builder = BertCorpus(
        data_dir=directory,
        scratch=scratch,
        spooled=spooled.records,
        spooled_bytes=spooled.bytes_written,
        splits=[SplitRule(name, last) for name in names_of_splits],
        documents=spooled.documents,
        tokenizer=tokenizer,
        max_length=options.max_length,
        description={
            "sources": spooled.source_counts,
            "text_bytes": spooled.text_bytes,
            "skipped": spooled.skipped,
            "new_words": new_words,  # how many of the last tokens --extend_vocabulary added
            "settings": _settings(options),
        },
        run=stages.run,
    )
    data_set = builder.write()
    builder.info.metadata["seconds"] = {
        "vocabulary": tokenizer_seconds,
        "corpus": time.monotonic() - start,
    }
    builder.info.metadata.save_metadata(data_set)


def _settings(options: PrepareOptions) -> dict[str, Any]:
    """The options that decide the records, for the reader of the metadata."""
    names = ("document_unit", "language", "text_field", "validation_share", "wrapped_lines")
    return {name: getattr(options, name) for name in names}
