"""How many real tokens a second one core reads, pairs and masks.

    python benchmarks/loader.py --corpus data/mine

The process is bound to one core. Rows are read in random order from the prepared corpus; padding
does not count. The table gives the median of the rounds. Packed rows hold up to 16 sequences.
"""

import argparse
import os
import statistics
import time

from results import add_results_argument, keep

from bert_jax.command_line import run
from bert_jax.data.corpus import open_corpus
from bert_jax.data.examples import ExampleStream
from bert_jax.data.masking import MaskingOptions, Unit
from bert_jax.data.pairs import Objective, PairOptions

_ROUNDS = 5
_BATCHES = 40


def main() -> None:
    """Measures, prints a table and writes the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--corpus", required=True, help="a prepared directory")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=256)
    add_results_argument(parser)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [
        (name, measure(arguments, objective, unit, sequences_per_row))
        for name, objective, unit, sequences_per_row in (
            ("nsp, masked by token", Objective.NEXT_SENTENCE, Unit.TOKEN, 1),
            ("nsp, masked by word", Objective.NEXT_SENTENCE, Unit.WORD, 1),
            ("nsp, masked by span", Objective.NEXT_SENTENCE, Unit.SPAN, 1),
            ("sop, masked by token", Objective.SENTENCE_ORDER, Unit.TOKEN, 1),
            ("none, masked by token", Objective.NONE, Unit.TOKEN, 1),
            ("none, packed", Objective.NONE, Unit.TOKEN, 16),
            ("nsp, packed", Objective.NEXT_SENTENCE, Unit.TOKEN, 16),
        )
    ]
    print(f"length {arguments.max_length}, batches of {arguments.batch_size}, one core")
    for name, speed in rows:
        print(f"  {name:22} {speed:>12,.0f} real tokens/s")
    slowest, speed = min(rows, key=lambda row: row[1])
    keep(
        arguments.results,
        f"loader: reading, pairing and masking, length {arguments.max_length}",
        f"**{rows[0][1]:,.0f}** real tokens/s on one core ({rows[0][0]}; the slowest, "
        f"{slowest}: {speed:,.0f})",
        dict(rows),
        {},
    )


def measure(
    arguments: argparse.Namespace, objective: Objective, unit: Unit, sequences_per_row: int
) -> float:
    """Real tokens a second, the median of the rounds."""
    corpus = open_corpus(arguments.corpus)
    stream = ExampleStream(
        [corpus.split("train")],
        [1.0],
        corpus.tokenizer,
        PairOptions(arguments.max_length, objective, sequences_per_row=sequences_per_row),
        MaskingOptions(arguments.max_length, unit),
        seed=0,
        purpose="benchmark",
    )
    stream.batch(0, arguments.batch_size)  # opens files
    speeds = []
    for number in range(_ROUNDS):
        tokens = 0
        start = time.perf_counter()
        for batch in range(_BATCHES):
            row = (number * _BATCHES + batch) * arguments.batch_size
            tokens += int(stream.batch(row, arguments.batch_size)["lengths"].sum())
        speeds.append(tokens / (time.perf_counter() - start))
    return statistics.median(speeds)


if __name__ == "__main__":
    run(main)
