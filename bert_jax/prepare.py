"""Turns text into a corpus to pretrain on: ``python -m bert_jax.prepare --help``."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence

from bert_jax.command_line import ArgumentParser, run, terminated_as_exception
from bert_jax.data.corpus import Corpus, is_corpus
from bert_jax.data.preparation import PrepareOptions, prepare_corpus
from bert_jax.data.stages import Progress
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.storage import as_path, is_remote

_SECONDS_BETWEEN_LINES = 10.0  # where the output is a file
_SECONDS_BETWEEN_UPDATES = 0.2  # where it is a terminal
_WORDS_SHOWN = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares a corpus as the command line says.

    Args:
      arguments: the command line after the program's name; None takes that of the process.

    Raises:
      UserError: the input or an option cannot be used.
    """
    parsed = _parser().parse_args(arguments)
    tokenizer = _tokenizer_of_model(parsed.vocabulary)
    options = PrepareOptions(
        vocabulary=tokenizer or parsed.vocabulary,
        new_words=parsed.extend_vocabulary,
        vocabulary_size=parsed.vocab_size,
        vocabulary_megabytes=parsed.vocabulary_megabytes,
        lowercase=parsed.lowercase,
        max_length=parsed.max_length,
        document_unit=parsed.documents,
        text_field=parsed.text_field,
        validation_share=parsed.validation_share,
        bad_input=parsed.bad_input,
        language=parsed.language,
        wrapped_lines=parsed.wrapped_lines,
        tfds_split=parsed.tfds_split,
        data_dir=parsed.data_dir,
        workers=parsed.workers,
        overwrite=parsed.overwrite,
        beam_runner=parsed.beam_runner,
        beam_options=tuple(parsed.beam_options.split(",") if parsed.beam_options else ()),
    )
    inputs = [name for names in parsed.input for name in names]
    progress = ProgressLine()
    try:
        with terminated_as_exception():
            corpus = prepare_corpus(inputs, parsed.output, options, report=progress)
    finally:
        progress.finish()
    print(summary(corpus, parsed.vocabulary if tokenizer else None))


def _tokenizer_of_model(name: str | None) -> WordPieceTokenizer | None:
    """The vocabulary of a run or of a Hugging Face model, where ``--vocabulary`` names one."""
    if name is None:
        return None
    path = as_path(name)
    if is_remote(name) or not path.is_dir() or is_corpus(path):
        return None
    # Here, because it brings JAX, which every worker process would load too.
    from bert_jax.pretrained import load_tokenizer

    return load_tokenizer(path)


def _parser() -> argparse.ArgumentParser:
    defaults = PrepareOptions()
    parser = ArgumentParser(
        prog="python -m bert_jax.prepare",
        description="Turns text into a corpus: a TFDS data set of WordPiece ids in chunks of "
        "sentences, with the vocabulary, split into training and validation.",
    )
    parser.add_argument(
        "--input",
        action="append",
        nargs="+",
        required=True,
        metavar="TEXT",
        help="files, globs or directories (text, .jsonl; plain, .gz, .xz, .zst), docs (the "
        "documentation on this machine) or tfds:NAME[/CONFIG]; may be given several times",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where the corpus is made")
    parser.add_argument(
        "--vocabulary",
        metavar="FILE|DIR",
        help="an existing vocab.txt, tokenizer.json, corpus, run or Hugging Face model, instead of "
        "training a vocabulary",
    )
    parser.add_argument(
        "--extend_vocabulary",
        type=int,
        default=defaults.new_words,
        metavar="WORDS",
        help="add the words to it by which the text becomes shortest, at most so many "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=defaults.vocabulary_size,
        metavar="TOKENS",
        help="size of the vocabulary that is trained (default: %(default)s)",
    )
    parser.add_argument(
        "--vocabulary_megabytes",
        type=float,
        default=defaults.vocabulary_megabytes,
        metavar="MB",
        help="how much text it is trained on or extended from at most, "
        "drawn evenly from all (default: %(default)s)",
    )
    case = parser.add_mutually_exclusive_group()
    case.add_argument(
        "--cased",
        dest="lowercase",
        action="store_false",
        help="keep case and accents (default: as a given vocabulary has it)",
    )
    case.add_argument(
        "--uncased",
        dest="lowercase",
        action="store_true",
        help="lower-case text and strip accents (default for a trained vocabulary)",
    )
    parser.set_defaults(lowercase=None)
    parser.add_argument(
        "--max_length",
        type=int,
        default=defaults.max_length,
        metavar="TOKENS",
        help="longest row to train on, with special tokens; shorter ones "
        "can be read from it too (default: %(default)s)",
    )
    parser.add_argument(
        "--documents",
        choices=("file", "blank_line"),
        default=defaults.document_unit,
        help="what one document is in text files: the file, or what "
        "stands between blank lines (default: %(default)s)",
    )
    parser.add_argument(
        "--text_field",
        metavar="KEY",
        help="where the text is in JSON lines and TFDS rows (default: text)",
    )
    parser.add_argument(
        "--validation_share",
        type=float,
        default=defaults.validation_share,
        metavar="SHARE",
        help="share of the documents in the validation split (default: %(default)s)",
    )
    parser.add_argument(
        "--bad_input",
        choices=("stop", "skip"),
        default=defaults.bad_input,
        help="stop at text that is not UTF-8 or not JSON, or leave the "
        "line out and count it (default: %(default)s)",
    )
    parser.add_argument(
        "--language",
        default=defaults.language,
        metavar="CODE",
        help="ISO code of the language, for splitting sentences (default: %(default)s)",
    )
    parser.add_argument(
        "--wrapped_lines",
        action="store_true",
        help="the text is wrapped at a width: a single line break is a space",
    )
    parser.add_argument(
        "--tfds_split",
        default=defaults.tfds_split,
        metavar="SPLIT",
        help="which split of tfds:NAME (default: %(default)s)",
    )
    parser.add_argument("--data_dir", metavar="DIR", help="where TFDS keeps its data")
    parser.add_argument(
        "--workers",
        type=int,
        default=defaults.workers,
        metavar="PROCESSES",
        help="processes that work; the corpus does not depend on it (default: %(default)s)",
    )
    parser.add_argument(
        "--beam_runner",
        metavar="RUNNER",
        help="have the work done by an Apache Beam pipeline: DirectRunner (--workers processes on "
        "this machine), DataflowRunner, FlinkRunner, SparkRunner, ...; the corpus does not depend "
        "on it",
    )
    parser.add_argument(
        "--beam_options",
        metavar="KEY=VALUE,...",
        help="options of Beam and of its runner, separated by commas",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a corpus that stands at --output"
    )
    return parser


class ProgressLine:
    """Prints progress on standard error: one line that changes, or now and then one in a log."""

    def __init__(self) -> None:
        self._stage = ""
        self._printed_at = float("-inf")
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        """Prints, unless that was done a moment ago."""
        now = time.monotonic()
        new_stage = progress.stage != self._stage
        interval = _SECONDS_BETWEEN_UPDATES if self._is_terminal else _SECONDS_BETWEEN_LINES
        if not new_stage and now - self._printed_at < interval:
            return
        if self._is_terminal and new_stage and self._stage:
            print(file=sys.stderr)
        self._stage, self._printed_at = progress.stage, now
        start, end = ("\r\x1b[K", "") if self._is_terminal else ("", "\n")
        print(f"{start}{progress_text(progress)}", end=end, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Ends the line that changes."""
        if self._is_terminal and self._stage:
            print(file=sys.stderr)


def progress_text(progress: Progress) -> str:
    """Progress as text: stage, megabytes, speed, and the time left where it can be known."""
    parts = [progress.stage]
    if progress.text_bytes:
        parts.append(f"{progress.text_bytes / 1e6:.1f} MB")
    if progress.seconds and progress.text_bytes:
        parts.append(f"{progress.text_bytes / 1e6 / progress.seconds:.1f} MB/s")
        if progress.share:
            left = progress.seconds * (1 - progress.share) / progress.share
            parts.append(f"{progress.share:.0%}, {left:.0f} s left")
    return ", ".join(parts)


def summary(corpus: Corpus, model: str | None = None) -> str:
    """What was prepared, warnings about it, and the command to type next.

    Args:
      corpus: what was prepared.
      model: the directory of the model whose vocabulary it has, if it is one's.
    """
    metadata = corpus.metadata
    counts = corpus.counts
    total = {
        key: sum(split[key] for split in counts.values()) for key in next(iter(counts.values()))
    }
    text_bytes, seconds = metadata["text_bytes"], metadata["seconds"]
    lines = [
        f"{'split':<12}{'documents':>12}{'sentences':>14}{'chunks':>12}{'tokens':>16}",
        *(
            f"{name:<12}{split['documents']:>12,}{split['sentences']:>14,}{split['chunks']:>12,}"
            f"{split['tokens']:>16,}"
            for name, split in counts.items()
        ),
        f"vocabulary {corpus.tokenizer.size:,} tokens, "
        f"{'uncased' if corpus.tokenizer.lowercase else 'cased'}; "
        f"{total['tokens'] / text_bytes:.3f} tokens a byte; skipped {metadata['skipped']:,}",
        f"{text_bytes / 1e6:,.1f} MB of text; vocabulary {seconds['vocabulary']:.1f} s, "
        f"corpus {seconds['corpus']:.1f} s ({text_bytes / 1e6 / seconds['corpus']:.1f} MB/s)",
    ]
    if new_words := metadata["new_words"]:
        some = ", ".join(corpus.tokenizer.vocabulary[-new_words:][:_WORDS_SHOWN])
        lines.append(f"{new_words:,} new words, such as {some}")
    if total["documents"] == 1:
        lines.append(
            "warning: the corpus is one document, so there is no validation split, and "
            "next-sentence prediction cannot be learnt; give more files, or --documents blank_line"
        )
    elif "validation" not in counts:
        lines.append("warning: there is no validation split")
    if total["one_sentence_documents"]:
        lines.append(
            f"warning: {total['one_sentence_documents']:,} of {total['documents']:,} documents "
            "have one sentence only; next-sentence prediction learns nothing from them"
        )
    directory = os.fspath(corpus.directory)
    name = os.path.basename(os.path.normpath(directory))
    lines.append(f"wrote {directory}; next:")
    recipe = (
        f"pretrain.py:base,corpus={directory}" if model is None else f"adapt.py:corpus={directory}"
    )
    command = f"  python -m bert_jax.train --config {shlex.quote(f'configs/{recipe}')}"
    command += f" --workdir {shlex.quote(f'runs/{name}')}"
    if model is not None:
        command += f" --config.init_from={shlex.quote(model)}"
    return "\n".join([*lines, command])


if __name__ == "__main__":
    run(main)
