"""How many sequences of each size fit in a memory, from the compiler's own count.

    python benchmarks/memory.py [--lengths 128 512] [--settings KEY=VALUE,...] [--output FILE]

The real training step (the recipe with its settings) is compiled for the local device at two batch
sizes. Its memory grows linearly with the batch, once activations outweigh gradients (with
`model.remat` that takes more sequences: `--batches 128 256`), and the table extrapolates to the
memories in its head; nothing in it was run. Another device's compiler plans otherwise, so take it
as a guide.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from bert_jax.command_line import load_config
from bert_jax.models.config import SIZES, sized_config
from bert_jax.models.config import count_parameters as count
from bert_jax.tasks.base import load_task
from bert_jax.training.optimizers import make_optimizer
from bert_jax.training.plan import bytes_per_device
from bert_jax.training.sharding import ACTIVATION_RULES, batch_sharding, make_mesh
from bert_jax.training.state import abstract_state
from bert_jax.training.step import make_train_step

PRETRAIN = Path(__file__).parents[1] / "configs" / "pretrain.py"
VOCABULARY_SIZE = 30522
MEMORIES_GIB = (16, 24, 40, 80)
BATCHES = (8, 16)
GIB = 2**30


def main() -> None:
    """Compiles, prints a table and writes the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument(
        "--batches", nargs=2, type=int, default=BATCHES, help="the sizes that are compiled"
    )
    parser.add_argument("--settings", default="", help="keys of the recipe: model.remat=full,...")
    parser.add_argument("--output", type=Path, help="where the numbers go, as JSON")
    arguments = parser.parse_args()
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    rows = []
    print("| size | parameters | state | length |" + "".join(f" {m} GiB |" for m in MEMORIES_GIB))
    print("|---|---|---|---|" + "---|" * len(MEMORIES_GIB))
    for size in arguments.sizes:
        for length in arguments.lengths:
            row = measure(size, length, arguments.batches, arguments.settings, mesh)
            rows.append(row)
            fits = "".join(f" {row['fits'][m]:,} |" for m in MEMORIES_GIB)
            state = f"{row['state_bytes'] / GIB:.2f} GiB"
            print(f"| {size} | {row['parameters']:,} | {state} | {length} |{fits}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


def measure(
    size: str, length: int, batches: Sequence[int], settings: str, mesh: Mesh
) -> dict[str, Any]:
    """Memory of one step at two batch sizes, and what follows for larger memories."""
    config = load_config(f"{PRETRAIN}:{size}" + (f",{settings}" if settings else ""))
    config.docs.vocabulary_size = VOCABULARY_SIZE
    config.data.max_length = length
    config.model.unroll = 1
    task = load_task(config)
    optimizer, schedule = make_optimizer(config.optimizer, config.total_steps)
    state = abstract_state(task.initialise, optimizer, mesh)
    step = make_train_step(task, optimizer, schedule, jax.random.key(0))
    used = []
    for batch_size in batches:
        batch = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=batch_sharding(mesh))
            for name, array in task.training_batch(0, slice(0, batch_size)).items()
        }
        with nn.logical_axis_rules(ACTIVATION_RULES):
            compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        memory = compiled.memory_analysis()
        used.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
    each = (used[1] - used[0]) / (batches[1] - batches[0])
    fixed = used[0] - batches[0] * each
    return {
        "size": size,
        "length": length,
        "parameters": count(sized_config(size, VOCABULARY_SIZE)),
        "state_bytes": bytes_per_device(state),
        "bytes_fixed": fixed,
        "bytes_a_sequence": each,
        "fits": {m: max(0, int((m * GIB - fixed) / each)) for m in MEMORIES_GIB},
    }


if __name__ == "__main__":
    main()
