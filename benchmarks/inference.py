"""Times the embedding of many texts against sentence-transformers, on the same model.

    python benchmarks/inference.py --model MINILM --data sst2.jsonl --text sentence

Both embed the texts of one file on the CPU, in float32 or bfloat16, in batches of about one length:
ours with `encode`, which `predict embed` runs too, and the peer with its own `encode`. Compilation
is not counted: every turn but the first has met all shapes. The contestants take turns within one
process; the table gives medians of the turns. How far their vectors differ is printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from cpu_threads import use_cpu
from results import add_results_argument, keep

from bert_jax.command_line import run

Encode = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    """Runs the contestants in turns, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a directory of sentence-transformers")
    parser.add_argument("--data", type=Path, required=True, help="a table of texts")
    parser.add_argument("--text", default="text", help="the column of the texts")
    parser.add_argument("--rows", type=int, default=4096, help="how many of its texts")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--compute_dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    add_results_argument(parser)
    arguments = parser.parse_args()

    use_cpu(arguments.threads)
    import sentence_transformers
    import torch

    import bert_jax
    from bert_jax.data.tables import read_table

    torch.set_num_threads(arguments.threads)
    texts = read_table(arguments.data, [arguments.text]).columns[arguments.text][: arguments.rows]
    dtype = arguments.compute_dtype
    ours = bert_jax.load(arguments.model).in_dtype(dtype)
    theirs = sentence_transformers.SentenceTransformer(arguments.model, device="cpu")
    theirs.to(getattr(torch, dtype))
    contestants: dict[str, Encode] = {
        "bert_jax": lambda some: ours.encode(some, arguments.batch_size),
        "sentence-transformers": lambda some: theirs.encode(
            some, batch_size=arguments.batch_size, show_progress_bar=False
        ),
    }
    vectors = [encode(texts) for encode in contestants.values()]
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, encode in contestants.items():
            start = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - start)

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{len(texts):,} texts, {dtype}, batches of {arguments.batch_size}, {arguments.threads} "
        f"threads; vectors differ by at most {np.abs(vectors[0] - vectors[1]).max():.1e}"
    )
    print(f"{'':24} {'texts a second':>15} {'fastest':>9} {'times as long':>14}")
    for name, median in medians.items():
        fastest = len(texts) / min(seconds[name])
        ratio = median / medians["bert_jax"]
        print(f"{name:24} {len(texts) / median:15,.0f} {fastest:9,.0f} {ratio:14.2f}")
    times = medians["sentence-transformers"] / medians["bert_jax"]
    keep(
        arguments.results,
        f"embedding {len(texts):,} texts of `{arguments.data.name}`, {dtype}, batches of "
        f"{arguments.batch_size}",
        f"{len(texts) / medians['bert_jax']:,.0f} texts/s; `sentence-transformers` "
        f"{len(texts) / medians['sentence-transformers']:,.0f}: **{times:.2f} times** as long",
        {"seconds": seconds, "median_seconds": medians},
        {
            "torch": torch.__version__,
            "sentence-transformers": sentence_transformers.__version__,
        },
    )


if __name__ == "__main__":
    run(main)
