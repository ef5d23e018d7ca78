"""How many real tokens a second one core reads, pairs and masks.

    python benchmarks/loader.py --corpus data/mine [--output FILE]

The process is bound to one core. Rows are read in random order from the prepared corpus; padding
does not count. The table gives the median of the rounds.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

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
    parser.add_argument("--output", type=Path, help="where the numbers go, as JSON")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [
        (f"{objective}, masked by {unit}", measure(arguments, objective, unit))
        for objective, unit in (
            (Objective.NEXT_SENTENCE, Unit.TOKEN),
            (Objective.NEXT_SENTENCE, Unit.WORD),
            (Objective.NEXT_SENTENCE, Unit.SPAN),
            (Objective.SENTENCE_ORDER, Unit.TOKEN),
            (Objective.NONE, Unit.TOKEN),
        )
    ]
    print(f"length {arguments.max_length}, batches of {arguments.batch_size}, one core")
    for name, speed in rows:
        print(f"  {name:22} {speed:>12,.0f} real tokens/s")
    if arguments.output:
        arguments.output.write_text(json.dumps(dict(rows), indent=2) + "\n")


def measure(arguments: argparse.Namespace, objective: Objective, unit: Unit) -> float:
    """Real tokens a second, the median of the rounds."""
    corpus = open_corpus(arguments.corpus)
    stream = ExampleStream(
        [corpus.split("train")],
        [1.0],
        corpus.tokenizer,
        PairOptions(arguments.max_length, objective),
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
    main()
