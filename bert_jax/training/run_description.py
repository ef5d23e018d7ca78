"""What a run is about to do, in a few lines, before it does it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from bert_jax.training.partition import Masking, count_trainable, everything
from bert_jax.training.state import TrainState


def describe_run(
    name: str,
    total_steps: int,
    phases: Sequence[str],
    mesh: Mesh,
    state: TrainState,
    masking: Masking = everything,
) -> str:
    """The run as a whole: task, phases, mesh, parameters and state.

    Args:
      name: the task.
      total_steps: updates of the whole run.
      phases: a line for each.
      mesh: the device mesh.
      state: abstract or real; gives sizes and shardings.
      masking: says which parameters are trained.
    """
    devices = mesh.devices.size
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    count = count_trainable(state.params, masking(state.params))
    lines = [
        f"{name}, {total_steps:,} steps",
        *(f"  batch       {phase}" for phase in phases),
        f"  mesh        {sizes} over {devices} {kind} device{'s' if devices > 1 else ''}",
        f"  parameters  {count.total:,} with padding; with the optimizer's state "
        f"{format_bytes(bytes_per_device(state))} a device",
    ]
    if count.trained < count.total:
        lines.append(f"  trained     {count.trained:,} of them, {count.share:.2%}")
    return "\n".join(lines)


def bytes_per_device(tree: Any) -> int:
    """The bytes that one device holds of a tree of sharded arrays, abstract or real."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def describe_step(compiled: jax.stages.Compiled, seconds: float, flops_per_device: float) -> str:
    """One compiled step: FLOPs and memory of one device.

    Args:
      compiled: the step; its memory is as the compiler counts it.
      seconds: how long it took to compile.
      flops_per_device: by formula, because the compiler counts a loop's body once; 0 if unknown.
    """
    parts = [f"compiled in {seconds:.1f} s"]
    if flops_per_device:
        parts.append(f"{flops_per_device / 1e9:,.1f} GFLOP a device and step")
    memory = compiled.memory_analysis()
    if memory is not None:
        arguments = format_bytes(memory.argument_size_in_bytes)
        temporary = format_bytes(memory.temp_size_in_bytes)
        parts.append(f"{arguments} of arguments and {temporary} of temporaries a device")
    return ", ".join(parts)


def format_bytes(count: float) -> str:
    """Three digits and a binary unit: 123456789 -> ``118 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
