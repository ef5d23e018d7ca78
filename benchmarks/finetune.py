"""Times the fine-tuning of a classifier against transformers' PyTorch Trainer.

    python benchmarks/finetune.py --data sst2.jsonl --vocabulary vocab.txt

Both train a BERT of random weights on the texts of one file (columns `text` and `label`), in
float32 on the CPU with dropout on, each with its own loader, batches and padding: ours in buckets
of length, and packed into rows as long as the longest text; the Trainer with batches padded to
their longest row, at random and grouped by length. Time is per example, from one finished update to
the next, so that neither's start-up or compilation counts. The contestants take turns within one
process, each turn on other batches; the table gives medians of the turns.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cpu_threads import use_cpu
from results import add_results_argument, keep

from bert_jax.command_line import run

CLASSIFY = Path(__file__).parents[1] / "configs" / "classify.py"
WARM_UP = 3  # updates of a turn that do not count
# The Trainer starts anew with every turn. Grouped by length it sorts so many batches at a time, the
# longest first, so that only all of them together are like an epoch.
MEGABATCH = 50
PACKED_SEQUENCES = 16  # of a row at most

# Makes some updates; gives the seconds that an example took.
Turn = Callable[[int], float]


def our_turn(
    data: Path, vocabulary: Path, size: str, batch_size: int, max_length: int, packed: bool
) -> Turn:
    """The loop of `bert_jax.train` without its logging."""
    import jax

    from bert_jax.config_file import load_config
    from bert_jax.tasks.batches import training_batches
    from bert_jax.tasks.program import make_program
    from bert_jax.tasks.registry import load_task
    from bert_jax.training.sharding import make_mesh, to_global
    from bert_jax.training.state import initial_state

    config = load_config(str(CLASSIFY))
    config.size, config.vocabulary = size, str(vocabulary)
    config.data.train, config.data.max_length = str(data), max_length
    config.batch_size, config.total_steps = batch_size, 1_000_000
    task = load_task(config)
    if packed:
        # Rows that hold the longest text, and as many of them as hold so many examples.
        longest = int(task.read("train").lengths.max())
        config.data.max_length, config.data.sequences_per_row = (
            -(-longest // 8) * 8,
            PACKED_SEQUENCES,
        )
        config.batch_size = round(batch_size / load_task(config).packing.sequences_per_row)
        task = load_task(config)
    mesh = make_mesh(config.mesh)
    program = make_program(task, mesh)
    settings = program.make_settings()
    state = initial_state(task.initialise, program.optimizer, program.state, jax.random.key(0))
    batches = training_batches(task, 0, mesh)
    compiled: dict[Any, Any] = {}

    def update() -> int:
        nonlocal state
        rows = next(batches)
        examples = np.count_nonzero(rows["lengths"])
        batch = to_global(rows, mesh)
        shape = batch["token_ids"].shape
        if shape not in compiled:
            compiled[shape] = program.compile(batch, mesh)
        state, _ = compiled[shape](state, batch, settings)
        return examples

    for _ in range(32):  # a window has batches of every length
        update()

    def turn(updates: int) -> float:
        for _ in range(WARM_UP):
            update()
        jax.block_until_ready(state)
        started = time.perf_counter()
        examples = sum(update() for _ in range(updates))
        jax.block_until_ready(state)
        return (time.perf_counter() - started) / examples

    return turn


def trainer_turn(
    data: Path, vocabulary: Path, size: str, batch_size: int, max_length: int, sampling: str
) -> Turn:
    """transformers' Trainer with its BertForSequenceClassification."""
    import torch
    import transformers

    from bert_jax.data.tables import read_table
    from bert_jax.models import sized_config

    table = read_table(data, ["text", "label"])
    labels = sorted(set(table.columns["label"]))
    tokenizer = transformers.BertTokenizerFast(
        vocab=str(vocabulary), vocab_file=str(vocabulary), do_lower_case=True
    )
    encoded = tokenizer(table.columns["text"], truncation=True, max_length=max_length)
    rows = [
        {"input_ids": ids, "labels": labels.index(label)}
        for ids, label in zip(encoded["input_ids"], table.columns["label"], strict=True)
    ]
    shape = sized_config(size, len(tokenizer))
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.feed_forward_width,
            num_labels=len(labels),
        )
    )

    numbers = itertools.count()

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    def turn(updates: int) -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as directory:
            settings = transformers.TrainingArguments(
                output_dir=directory,
                per_device_train_batch_size=batch_size,
                max_steps=MEGABATCH + updates,
                train_sampling_strategy=sampling,
                seed=next(numbers),
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                logging_strategy="no",
            )
            transformers.Trainer(
                model=model,
                args=settings,
                train_dataset=rows,
                data_collator=transformers.DataCollatorWithPadding(tokenizer),
                callbacks=[clock],
            ).train()
        return (clock.ends[-1] - clock.ends[MEGABATCH - 1]) / (updates * batch_size)

    return turn


def main() -> None:
    """Runs the contestants in turns, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a table of texts and labels")
    parser.add_argument("--vocabulary", type=Path, required=True, help="a vocab.txt")
    parser.add_argument("--size", default="mini", help="model size")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument(
        "--updates", type=int, default=MEGABATCH, help=f"of a turn, a multiple of {MEGABATCH}"
    )
    add_results_argument(parser)
    arguments = parser.parse_args()
    if arguments.updates < 1 or arguments.updates % MEGABATCH:
        parser.error(f"--updates {arguments.updates} is no multiple of {MEGABATCH}")

    use_cpu(arguments.threads)
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    shape = (arguments.size, arguments.batch_size, arguments.max_length)
    ours = "bert_jax"
    turns = {
        ours: our_turn(arguments.data, arguments.vocabulary, *shape, packed=False),
        f"{ours}, packed": our_turn(arguments.data, arguments.vocabulary, *shape, packed=True),
    }
    for name, sampling in (("at random", "random"), ("by length", "group_by_length")):
        turns[f"Trainer, batches {name}"] = trainer_turn(
            arguments.data, arguments.vocabulary, *shape, sampling
        )
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(arguments.rounds):
        for name, turn in turns.items():
            seconds[name].append(turn(arguments.updates))

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"BERT-{arguments.size}, batch {arguments.batch_size}, at most {arguments.max_length} "
        f"tokens, {arguments.threads} threads"
    )
    print(f"{'':28} {'ms an example':>14} {'fastest':>9} {'times ours':>11}")
    for name, median in medians.items():
        ratio = median / medians[ours]
        print(f"{name:28} {1e3 * median:14.2f} {1e3 * min(seconds[name]):9.2f} {ratio:11.2f}")
    own, packed, at_random, by_length = (1e3 * median for median in medians.values())
    keep(
        arguments.results,
        f"fine-tuning BERT-{arguments.size} on `{arguments.data.name}`, batches of "
        f"{arguments.batch_size}",
        f"{own:.2f} ms an example ({packed:.2f} packed); `transformers`' Trainer as it comes "
        f"{at_random:.2f}, **{at_random / own:.2f} times** as long; with `group_by_length` "
        f"{by_length:.2f}, {by_length / own:.2f} times",
        {"seconds_an_example": seconds, "median_seconds_an_example": medians},
        {"torch": torch.__version__, "transformers": transformers.__version__},
    )


if __name__ == "__main__":
    run(main)
