"""Times one pretraining step of BERT against transformers' PyTorch BertForPreTraining.

    python benchmarks/train_step.py --json train_step.json

One step is forward, backward, clipping and AdamW update with dropout on, in float32 on the CPU.
Ours is the step that `bert_jax.train` runs, with its metrics; all get the same batches, which the
pretraining task makes from the built-in corpus (prepared on first use). PyTorch runs eagerly and
through torch.compile, each with the fused and the foreach AdamW. The contestants take turns within
one process, so that a slow spell of the machine meets all of them; the table gives medians.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cpu_threads import use_cpu

VOCABULARY_SIZE = 30522
PRETRAIN = Path(__file__).parents[1] / "configs" / "pretrain.py"

Batch = dict[str, np.ndarray]
# Takes a batch, makes one update, returns when the parameters are ready.
Step = Callable[[Batch], float]


def pretraining_task(size: str, length: int, batch_size: int) -> Any:
    """The task of `configs/pretrain.py` on the built-in corpus."""
    from bert_jax.command_line import load_config
    from bert_jax.tasks.base import load_task

    config = load_config(f"{PRETRAIN}:{size}")
    config.batch_size = batch_size
    config.data.max_length = length
    config.docs.vocabulary_size = VOCABULARY_SIZE
    task = load_task(config)
    # The text is too small to fill BERT's vocabulary; the model has all of it.
    encoder = dataclasses.replace(task.description.config, vocabulary_size=VOCABULARY_SIZE)
    task.description = dataclasses.replace(task.description, config=encoder)
    task.model = task.description.model()
    return task


def jax_step(task: Any) -> Step:
    """The step that `bert_jax.train` runs, on one device."""
    import jax

    from bert_jax.tasks.program import abstract_batch, make_program
    from bert_jax.training.sharding import make_mesh, to_global
    from bert_jax.training.state import initial_state

    mesh, (phase,) = make_mesh(task.config.mesh), task.phases
    program = make_program(task, mesh)
    settings = program.make_settings()
    state = initial_state(task.initialise, program.optimizer, program.state, jax.random.key(0))
    compiled = program.compile(abstract_batch(task, phase, phase.batch_size, mesh), mesh)

    def run(batch: Batch) -> float:
        nonlocal state
        state, report = compiled(state, to_global(batch, mesh), settings)
        jax.block_until_ready(state)
        return float(report["mlm_loss"].total / report["mlm_loss"].weight)

    return run


def torch_step(size: str, length: int, compiled: bool, optimizer_kind: str) -> Step:
    """transformers' BertForPreTraining, in its default attention, with torch's AdamW."""
    import torch
    import transformers

    from bert_jax.models import sized_config

    shape = sized_config(size, VOCABULARY_SIZE)
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.feed_forward_width,
        )
    ).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, eps=1e-6, **{optimizer_kind: True})
    forward = torch.compile(model) if compiled else model

    def run(batch: Batch) -> float:
        lengths = batch["lengths"]
        labels = np.full(batch["token_ids"].shape, -100, np.int64)
        rows, places = np.nonzero(batch["masked_weights"])
        labels[rows, batch["masked_positions"][rows, places]] = batch["masked_labels"][rows, places]
        real = np.arange(length) < lengths[:, None]
        loss = forward(
            input_ids=torch.from_numpy(batch["token_ids"].astype(np.int64)),
            token_type_ids=torch.from_numpy(batch["segment_ids"].astype(np.int64)),
            attention_mask=torch.from_numpy(real.astype(np.int64)),
            labels=torch.from_numpy(labels),
            next_sentence_label=torch.from_numpy(batch["next_sentence_label"].astype(np.int64)),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def main() -> None:
    """Runs the contestants in turns, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="mini", help="model size")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant")
    parser.add_argument("--without_torch", action="store_true", help="time ours alone")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    arguments = parser.parse_args()

    use_cpu(arguments.threads)

    size, length = arguments.size, arguments.length
    ours = "bert_jax"
    task = pretraining_task(size, length, arguments.batch_size)
    steps = {ours: jax_step(task)}
    versions = {}
    if not arguments.without_torch:
        import torch

        torch.set_num_threads(arguments.threads)
        versions["torch"] = torch.__version__
        for compiled, kind in itertools.product((False, True), ("fused", "foreach")):
            mode = "compiled" if compiled else "eager"
            name = f"PyTorch {mode}, {kind} AdamW"
            steps[name] = torch_step(size, length, compiled, kind)

    rows = slice(0, arguments.batch_size)
    batches = (task.training_batch(number, rows) for number in itertools.count())
    for _, step in itertools.product(range(2), steps.values()):
        step(next(batches))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        batch = next(batches)
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - start)

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"BERT-{size}, vocabulary {VOCABULARY_SIZE}, length {length}, "
        f"batch {arguments.batch_size}, {arguments.threads} threads"
    )
    print(f"{'':32} {'median ms':>10} {'fastest ms':>11} {'times ours':>11}")
    for name, median in medians.items():
        fastest = min(seconds[name])
        ratio = median / medians[ours]
        print(f"{name:32} {1e3 * median:10.0f} {1e3 * fastest:11.0f} {ratio:11.2f}")
    if arguments.json:
        settings = vars(arguments) | {"json": None}
        from bert_jax.training.environment import environment

        machine = environment()
        record = {
            "settings": settings,
            "machine": machine | versions,
            "seconds": seconds,
            "median_seconds": medians,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
