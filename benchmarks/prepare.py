"""How fast text becomes a corpus, and in how much memory.

    python benchmarks/prepare.py --input books.jsonl.xz [--vocabulary vocab.txt]
        [--beam_runner DirectRunner --files 16] [--gigabytes 20]

The input (JSON lines with a ``text`` field, or text; compressed or not) is decompressed first,
which is not timed. A vocabulary is trained on it unless one is given, which is timed apart. Then a
quarter of the text and all of it are prepared with that vocabulary, each in a new process, start-up
included. CPU seconds are those of all processes. Peak memory is the largest sum of the resident
sizes of all processes, sampled ten times a second.

With ``--gigabytes``, the cost of so much text is computed from the two measurements: what the
difference between them costs, so often as it goes into it. The time of starting up is left out.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from results import add_results_argument, keep

from bert_jax.command_line import run
from bert_jax.data.corpus import open_corpus
from bert_jax.data.documents import Tally
from bert_jax.data.text_files import TextFiles

_SECONDS_BETWEEN_SAMPLES = 0.1
_VOCABULARY_SIZE = 30522


def main() -> None:
    """Measures, prints a table and writes the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--input", required=True, type=Path)
    parser.add_argument("--vocabulary", help="a vocab.txt; without it one is trained")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--beam_runner", help="prepare by a Beam pipeline")
    parser.add_argument("--files", type=int, default=1, help="how many files the text is put into")
    parser.add_argument("--gigabytes", type=float, help="how much text to compute the cost of")
    add_results_argument(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(arguments, Path(name))
    print_table(result)
    if arguments.gigabytes:
        print_cost(result, arguments.gigabytes)
    quarter, whole = result["runs"]
    given = "an existing" if arguments.vocabulary else "its"
    keep(
        arguments.results,
        f"`prepare`, {whole['text_megabytes']:.0f} MB of text, {given} vocabulary",
        f"**{whole['megabytes_per_second']:.1f} MB/s**, {whole['peak_memory_megabytes']:.0f} MB of "
        f"memory ({quarter['peak_memory_megabytes']:.0f} MB for a quarter of it)",
        result,
        {},
    )


def measure(arguments: argparse.Namespace, scratch: Path) -> dict:
    """Runs ``bert_jax.prepare`` on a quarter of the text and on all of it."""
    sizes = write_texts(arguments.input, scratch, arguments.files)
    result = {
        "input": arguments.input.name,
        "workers": arguments.workers,
        "max_length": arguments.max_length,
        "beam_runner": arguments.beam_runner,
        "files": arguments.files,
        "runs": [],
    }
    vocabulary = arguments.vocabulary
    for part, size in sizes.items():
        corpus = scratch / f"corpus-{part}"
        options = ["--input", str(scratch / part), "--output", str(corpus)]
        options += ["--max_length", str(arguments.max_length)]
        options += ["--workers", str(arguments.workers)]
        if arguments.beam_runner:
            options += ["--beam_runner", arguments.beam_runner]
        if vocabulary is None:
            options += ["--vocab_size", str(_VOCABULARY_SIZE)]
            prepare(options)
            result["vocabulary_seconds"] = open_corpus(corpus).metadata["seconds"]["vocabulary"]
            result["vocabulary_megabytes"] = size / 1e6
            vocabulary = str(corpus)
            options[options.index(str(corpus))] = str(scratch / f"again-{part}")
            corpus = scratch / f"again-{part}"
        seconds, cpu_seconds, peak_bytes = prepare([*options, "--vocabulary", vocabulary])
        counts = open_corpus(corpus).counts
        result["runs"].append(
            {
                "text_megabytes": size / 1e6,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "megabytes_per_second": size / 1e6 / seconds,
                "peak_memory_megabytes": peak_bytes / 1e6,
                "tokens": sum(split["tokens"] for split in counts.values()),
                "disk_megabytes": sum(f.stat().st_size for f in corpus.rglob("*.*")) / 1e6,
            }
        )
    return result


def write_texts(source: Path, scratch: Path, files: int) -> dict[str, int]:
    """Writes a quarter and the whole of the text as JSON lines; returns their bytes of text."""
    documents: list[list[str]] = []
    for text, starts_document in TextFiles(str(source), (source,)).passages(Tally()):
        if starts_document:
            documents.append([])
        documents[-1].append(text)
    texts = ["".join(pieces) for pieces in documents]
    whole = sum(len(text.encode()) for text in texts)
    sizes = {}
    for part, share in (("quarter", 0.25), ("whole", 1.0)):
        sizes[part] = 0
        (scratch / part).mkdir()
        with contextlib.ExitStack() as stack:
            opened = [
                stack.enter_context((scratch / part / f"{number:04d}.jsonl").open("w"))
                for number in range(files)
            ]
            for number, text in enumerate(texts):
                if sizes[part] >= share * whole:
                    break
                sizes[part] += len(text.encode())
                line = json.dumps({"text": text}, ensure_ascii=False)
                opened[number % files].write(line + "\n")
    return sizes


def prepare(options: list[str]) -> tuple[float, float, int]:
    """Prepares a corpus in a process of its own: (seconds, CPU seconds, peak bytes)."""
    start, cpu_start = time.perf_counter(), _cpu_seconds_of_children()
    process = subprocess.Popen(
        [sys.executable, "-m", "bert_jax.prepare", *options], stdout=subprocess.DEVNULL
    )
    root = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        total = 0
        try:
            for member in (root, *root.children(recursive=True)):
                total += member.memory_info().rss
        except psutil.NoSuchProcess:  # one ended meanwhile; the next sample will do
            continue
        finally:
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
        peak = max(peak, total)
    if process.returncode != 0:
        sys.exit(f"bert_jax.prepare failed with exit code {process.returncode}")
    return time.perf_counter() - start, _cpu_seconds_of_children() - cpu_start, peak


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def print_table(result: dict) -> None:
    """Prints the numbers."""
    print(f"{result['input']}, rows of {result['max_length']} tokens, {result['workers']} workers")
    if "vocabulary_seconds" in result:
        print(
            f"vocabulary of {_VOCABULARY_SIZE:,} from {result['vocabulary_megabytes']:.1f} MB: "
            f"{result['vocabulary_seconds']:.1f} s"
        )
    print(
        f"{'text MB':>10}{'seconds':>10}{'CPU s':>8}{'MB/s':>8}{'peak MB':>10}"
        f"{'tokens':>14}{'disk MB':>10}"
    )
    for measured in result["runs"]:
        print(
            f"{measured['text_megabytes']:>10.1f}{measured['seconds']:>10.1f}"
            f"{measured['cpu_seconds']:>8.1f}"
            f"{measured['megabytes_per_second']:>8.2f}{measured['peak_memory_megabytes']:>10.0f}"
            f"{measured['tokens']:>14,}{measured['disk_megabytes']:>10.1f}"
        )


def print_cost(result: dict, gigabytes: float) -> None:
    """Prints what so much text would cost; computed, not measured."""
    quarter, whole = result["runs"]
    if quarter["text_megabytes"] == whole["text_megabytes"]:
        print("the text is too short to have a quarter; nothing was computed for more of it")
        return

    def scaled(key: str) -> float:
        """The number for so much text, from what the text beyond the quarter costs."""
        more = whole["text_megabytes"] - quarter["text_megabytes"]
        return (whole[key] - quarter[key]) / more * gigabytes * 1000

    cpu_hours = scaled("cpu_seconds") / 3600
    print(
        f"computed for {gigabytes:g} GB: {cpu_hours:.2f} core-hours "
        f"({scaled('seconds') / 3600:.2f} h on this machine, {cpu_hours * 60 / 64:.1f} min on "
        f"64 cores like it), {scaled('tokens') / 1e9:.2f}e9 tokens, "
        f"{scaled('disk_megabytes') / 1e3:.1f} GB"
    )


if __name__ == "__main__":
    run(main)
