"""Times one pretraining step of BERT against transformers' PyTorch BertForPreTraining.

    python benchmarks/train_step.py --json train_step.json

One step is forward, backward, clipping and AdamW update with dropout on, in float32 on the CPU, on
the same batches of real English text (the help topics that come with Python). PyTorch runs eagerly
and through torch.compile, each with the fused and the foreach AdamW. The contestants take turns
within one process, so that a slow spell of the machine meets all of them; the table gives medians.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

VOCABULARY_SIZE = 30522
MASKED = 20
PAD, CLS, SEP, MASK = range(4)

Batch = dict[str, np.ndarray]
# Takes a batch, makes one update, returns when the parameters are ready.
Step = Callable[[Batch], float]


def real_batches(rows: int, length: int, seed: int = 0) -> Iterator[Batch]:
    """Endless batches of padded pairs of real text, masked at `MASKED` positions as BERT masks.

    A tenth of the rows are shorter than `length`, as in BERT's recipe. The small text gives a
    vocabulary of some thousand pieces; the model's stays `VOCABULARY_SIZE`.
    """
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    texts = [topics[name] for name in sorted(topics)]
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    tokenizer.train_from_iterator(
        texts, VOCABULARY_SIZE, special_tokens=special, show_progress=False
    )
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    stream = np.concatenate([encoding.ids for encoding in encodings]).astype(np.int32)
    rng = np.random.default_rng(seed)
    while True:
        lengths = np.where(rng.random(rows) < 0.1, rng.integers(32, length, rows), length)
        tokens = np.full((rows, length), PAD, np.int32)
        segments = np.zeros((rows, length), np.int32)
        positions = np.zeros((rows, MASKED), np.int32)
        labels = np.zeros((rows, MASKED), np.int32)
        for row, real in enumerate(lengths):
            first = int(rng.integers(8, real - 16))
            starts = rng.integers(0, len(stream) - length, 2)
            pieces = [stream[start : start + length] for start in starts]
            ids = [CLS, *pieces[0][: first - 2], SEP, *pieces[1][: real - first - 1], SEP]
            tokens[row, :real] = ids
            segments[row, first:real] = 1
            candidates = np.setdiff1d(np.arange(real), [0, first - 1, real - 1])
            positions[row] = np.sort(rng.choice(candidates, MASKED, replace=False))
            labels[row] = tokens[row, positions[row]]
            tokens[row, positions[row]] = np.where(rng.random(MASKED) < 0.9, MASK, labels[row])
        yield {
            "token_ids": tokens,
            "segment_ids": segments,
            "lengths": lengths.astype(np.int32),
            "masked_positions": positions,
            "masked_labels": labels,
            "masked_weights": np.ones((rows, MASKED), np.float32),
            "next_sentence_label": rng.integers(0, 2, rows).astype(np.int32),
        }


def jax_step(size: str, length: int, prng: str, unroll: int) -> Step:
    """Our model, optimizer and training step."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from bert_jax.models import PretrainingModel, correct_sum, cross_entropy_sum, sized_config
    from bert_jax.training.metrics import Ratio
    from bert_jax.training.optimizers import make_optimizer
    from bert_jax.training.state import TrainState
    from bert_jax.training.step import make_train_step

    model = PretrainingModel(sized_config(size, VOCABULARY_SIZE, unroll=unroll))

    class Pretraining:
        losses: Mapping[str, float] = {"mlm_loss": 1.0, "nsp_loss": 1.0}

        def sums(self, params: Any, batch: Any, dropout_key: jax.Array | None) -> dict[str, Ratio]:
            mlm_logits, pair_logits = model.apply(
                {"params": params},
                batch["token_ids"],
                batch["segment_ids"],
                batch["lengths"],
                batch["masked_positions"],
                deterministic=dropout_key is None,
                rngs=None if dropout_key is None else {"dropout": dropout_key},
            )
            masked = mlm_logits, batch["masked_labels"], batch["masked_weights"]
            pairs = pair_logits, batch["next_sentence_label"], jnp.ones(len(pair_logits))
            return {
                "mlm_loss": Ratio(*cross_entropy_sum(*masked)),
                "nsp_loss": Ratio(*cross_entropy_sum(*pairs)),
                "mlm_accuracy": Ratio(*correct_sum(*masked)),
                "nsp_accuracy": Ratio(*correct_sum(*pairs)),
            }

    optimizer, schedule = make_optimizer({"warmup_steps": 0}, total_steps=1_000_000)
    key = jax.random.key(0, impl=prng)
    step = make_train_step(Pretraining(), optimizer, schedule, key)
    example = jnp.zeros((1, length), jnp.int32)

    @jax.jit
    def initialise(key: jax.Array) -> TrainState:
        inputs = (example, example, jnp.ones(1, jnp.int32), example[:, :1])
        params = nn.unbox(model.init(key, *inputs, deterministic=True)["params"])
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    state = initialise(jax.random.key(0))
    compiled = jax.jit(step, donate_argnums=0)

    def run(batch: Batch) -> float:
        nonlocal state
        state, report = compiled(state, batch)
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
        np.put_along_axis(labels, batch["masked_positions"], batch["masked_labels"], axis=1)
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
    parser.add_argument("--prng", default="threefry2x32", help="implementation of our dropout key")
    parser.add_argument("--unroll", type=int, default=4, help="our layers per loop iteration")
    parser.add_argument("--without_torch", action="store_true", help="time ours alone")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    arguments = parser.parse_args()

    # Before either library starts its threads: both then use that many cores.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])

    size, length = arguments.size, arguments.length
    ours = "bert_jax"
    steps = {ours: jax_step(size, length, arguments.prng, arguments.unroll)}
    versions = {}
    if not arguments.without_torch:
        import torch

        torch.set_num_threads(arguments.threads)
        versions["torch"] = torch.__version__
        for compiled, kind in itertools.product((False, True), ("fused", "foreach")):
            mode = "compiled" if compiled else "eager"
            steps[f"PyTorch {mode}, {kind} AdamW"] = torch_step(size, length, compiled, kind)

    batches = real_batches(arguments.batch_size, length)
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
        f"BERT-{size}, length {length}, batch {arguments.batch_size}, {arguments.threads} threads"
    )
    print(f"{'':32} {'median ms':>10} {'fastest ms':>11} {'times ours':>11}")
    for name, median in medians.items():
        fastest = min(seconds[name])
        ratio = median / medians[ours]
        print(f"{name:32} {1e3 * median:10.0f} {1e3 * fastest:11.0f} {ratio:11.2f}")
    if arguments.json:
        import jax

        versions["jax"] = jax.__version__
        settings = vars(arguments) | {"json": None}
        machine = {"processor": platform.processor(), "python": platform.python_version()}
        record = {
            "settings": settings,
            "machine": machine | versions,
            "seconds": seconds,
            "median_seconds": medians,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
