"""Plans a run for hardware that need not be here: memory, FLOPs, collectives, the largest batch.

    python -m bert_jax.plan --config configs/pretrain.py:large --vocabulary_size 30522 \
        --topology v5e:16x16 --config.mesh.data=16 --config.mesh.fsdp=16 --config.batch_size=4096

compiles the very step that ``bert_jax.train`` would run, with the TPU's own compiler (``pip install
-e '.[tpu]'``, on any Linux machine), and says what it takes. Without ``--topology`` it does so
for the devices of this machine. Memory and collectives are the compiler's; FLOPs are counted by
formula; times follow from them and the MFU that is asked for. Nothing is run.

Of pretraining, the corpus need not be at hand: with ``--vocabulary_size``, and for ``corpus=docs``,
one of made-up words stands in for it, for the step depends on its vocabulary's size alone (and its
FLOPs, where sequences share rows, on their lengths: they are counted as if each filled one). The
search for the largest batch compiles some five times, which takes minutes; ``--no_search`` leaves
it out, and ``--quick`` compiles with the compiler's least effort: several times faster, and the
program takes more memory than the one that would run.
"""

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from bert_jax.command_line import ArgumentParser, run, take_overrides
from bert_jax.config_file import load_config, override_config
from bert_jax.data.stand_in_corpus import write_stand_in_corpus
from bert_jax.errors import UserError
from bert_jax.models.flops import peak_flops
from bert_jax.pretrained import load
from bert_jax.tasks.base import Start
from bert_jax.tasks.planner import Hardware, Planner, StepPlan
from bert_jax.tasks.registry import load_task
from bert_jax.training.footprint import Footprint
from bert_jax.training.partition import count_trainable
from bert_jax.training.run_description import bytes_per_device, describe_run, format_bytes
from bert_jax.training.sharding import batch_shards, make_mesh
from bert_jax.training.topology import GIB, hbm_bytes, topology_devices


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, compiles and prints the plan."""
    rest, overrides = take_overrides(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(rest)
    for flag in ("mfu", "peak_tflops", "hbm_gib", "batch_per_chip"):
        value = getattr(arguments, flag)
        most = 1.0 if flag == "mfu" else math.inf
        if value is not None and not (0 < value <= most and math.isfinite(value)):
            to_one = " and at most 1" if flag == "mfu" else ""
            raise UserError(f"--{flag} {value} must be above 0{to_one}")
    config = load_config(arguments.config)
    for key, text in overrides:
        override_config(config, key, text)
    config.lock()
    devices = topology_devices(arguments.topology) if arguments.topology else jax.devices()
    mesh = make_mesh(config.mesh, devices)
    if arguments.batch_per_chip is not None:
        _set_batch(config, arguments.batch_per_chip * batch_shards(mesh))
    with tempfile.TemporaryDirectory() as directory:
        stand_in = _stand_in(config, arguments.vocabulary_size, Path(directory))
        origin = load(config.init_from) if config.init_from else None
        start = Start() if origin is None else Start(origin.assets, params=origin.params)
        task = load_task(config, start)
        hardware = Hardware(
            hbm_bytes(devices[0]) if arguments.hbm_gib is None else int(arguments.hbm_gib * GIB),
            peak_flops(devices[0].device_kind)
            if arguments.peak_tflops is None
            else arguments.peak_tflops * 1e12,
        )
        planner = Planner(task, mesh, hardware, quick=arguments.quick)
        if not arguments.json:
            print(_describe_run(planner), flush=True)
            if stand_in:
                print(f"  vocabulary  {stand_in:,} tokens of a stand-in; no corpus was read")
        steps = []
        for phase in task.phases:
            step = planner.plan(phase, search=not arguments.no_search)
            steps.append(step)
            if not arguments.json:
                print(describe_phase(step, planner, arguments.mfu), flush=True)
        if arguments.json:
            result = plan_to_dict(planner) | {
                "config": arguments.config,
                "topology": arguments.topology,
                "vocabulary_of_stand_in": stand_in,
                "mfu": arguments.mfu,
                "phases": [phase_to_dict(step, planner, arguments.mfu) for step in steps],
            }
            print(json.dumps(result, indent=2))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m bert_jax.plan",
        usage="%(prog)s --config FILE[:ARGUMENT] [--topology NAME] [--config.KEY=VALUE ...]",
        description=(__doc__ or "").partition("\n\n")[0],
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARGUMENT]", help="recipe, and its argument"
    )
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="a TPU slice, such as v5e:16x16 (v4 and v5p have three dimensions: v4:2x2x1); "
        "default: the devices of this machine",
    )
    parser.add_argument(
        "--vocabulary_size",
        type=int,
        metavar="N",
        help="of pretraining: plan for a vocabulary of so many tokens, without a corpus",
    )
    parser.add_argument(
        "--batch_per_chip",
        type=int,
        metavar="N",
        help="sets batch_size to N times the parts that the mesh splits a batch in",
    )
    parser.add_argument(
        "--no_search", action="store_true", help="do not search the largest batch that fits"
    )
    parser.add_argument(
        "--quick", action="store_true", help="compile with the compiler's least effort"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of the chip's peak that the compute time supposes; default: 0.4",
    )
    parser.add_argument(
        "--peak_tflops",
        type=float,
        metavar="X",
        help="the chip's peak, where it is not known, or another",
    )
    parser.add_argument(
        "--hbm_gib",
        type=float,
        metavar="X",
        help="the chip's memory, where it is not known, or another",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _set_batch(config: ml_collections.ConfigDict, batch_size: int) -> None:
    config.batch_size = batch_size
    if "second_phase" in config:
        config.second_phase.batch_size = batch_size


def _stand_in(
    config: ml_collections.ConfigDict, vocabulary_size: int | None, directory: Path
) -> int | None:
    """Puts a corpus of made-up words in the place of one that is not to be read.

    Returns:
      The size of its vocabulary; None if there is no need of one.
    """
    if "corpus" not in config or config.init_from:
        if vocabulary_size is not None:
            raise UserError(
                "--vocabulary_size is of pretraining from random weights; leave it out, for the "
                "vocabulary comes with the encoder or the data"
            )
        return None
    if vocabulary_size is None:
        if config.corpus != "docs":
            return None
        vocabulary_size = config.docs.vocabulary_size
    lengths = [config.data.max_length]
    if config.second_phase.share > 0:
        lengths.append(config.second_phase.max_length)
    config.corpus = str(directory / "corpus")
    write_stand_in_corpus(
        directory / "corpus", vocabulary_size=vocabulary_size, max_length=max(lengths)
    )
    return vocabulary_size


def _describe_run(planner: Planner) -> str:
    """The run, as ``bert_jax.train`` prints it."""
    task, program = planner.task, planner.program
    return describe_run(
        task.config.task,
        task.config.total_steps,
        [f"{phase.batch_size:,} × {phase.description}" for phase in task.phases],
        planner.mesh,
        program.state,
        program.masking,
    )


def _seconds(step: StepPlan, hardware: Hardware, mfu: float) -> float | None:
    """How long a step's FLOPs take at a share of the peak; None where either is not known."""
    if not step.flops or not hardware.peak_flops:
        return None
    return step.flops / (hardware.peak_flops * mfu)


def plan_to_dict(planner: Planner) -> dict[str, Any]:
    """What all phases share: plain JSON."""
    config, state = planner.task.config, planner.program.state
    count = count_trainable(state.params, planner.program.masking(state.params))
    return {
        "task": config.task,
        "total_steps": config.total_steps,
        "device_kind": planner.mesh.devices.flat[0].device_kind,
        "devices": planner.mesh.devices.size,
        "mesh": dict(planner.mesh.shape),
        "parameters": count.total,
        "trained_parameters": count.trained,
        "state_bytes_per_chip": bytes_per_device(state),
        "hbm_bytes_per_chip": planner.hardware.hbm_bytes,
        "peak_flops_per_chip": planner.hardware.peak_flops,
    }


def phase_to_dict(step: StepPlan, planner: Planner, mfu: float) -> dict[str, Any]:
    """The step of a phase: plain JSON."""
    parts, hbm = batch_shards(planner.mesh), planner.hardware.hbm_bytes
    memory = None
    if step.memory is not None:
        left = None if hbm is None else hbm - step.memory.used
        memory = dataclasses.asdict(step.memory) | {"used": step.memory.used, "left": left}
    return {
        "description": step.phase.description,
        "batch_size": step.phase.batch_size,
        "batch_per_part": step.phase.batch_size // parts,
        "compile_seconds": round(step.seconds, 1),
        "fits": step.fits,
        "refusal": step.refusal,
        "memory_bytes_per_chip": memory,
        "flops_per_chip": step.flops,
        "compute_seconds": _seconds(step, planner.hardware, mfu),
        "collectives": {
            kind: dataclasses.asdict(total) for kind, total in step.collectives.items()
        },
        "largest_collective_bytes": step.largest_collective,
        "largest_batch_per_part": step.largest,
        "largest_batch_size": None if step.largest is None else step.largest * parts,
    }


def describe_phase(step: StepPlan, planner: Planner, mfu: float) -> str:
    """The step of a phase, in a few lines."""
    hardware, parts = planner.hardware, batch_shards(planner.mesh)
    tensor = planner.mesh.shape["tensor"]
    part = "chip" if tensor == 1 else f"{tensor} chips"
    phase = step.phase
    rows = f"{phase.batch_size:,} × {phase.description}, {phase.batch_size // parts:,} a {part}"
    lines = [f"{rows}: compiled in {step.seconds:.0f} s"]
    if step.refusal is not None:
        lines.append(f"  memory      does not fit: {step.refusal}")
    if step.memory is not None:
        lines.append(f"  memory      {_describe_memory(step.memory, hardware.hbm_bytes)} a chip")
    longest = ", if all rows are of the longest" if planner.task.lengths_vary else ""
    if step.flops:
        lines.append(
            f"  compute     {step.flops / 1e9:,.1f} GFLOP a chip and step, by formula{longest}"
        )
    if (seconds := _seconds(step, planner.hardware, mfu)) is not None:
        steps = phase.end_step - phase.first_step
        lines.append(
            f"  time        {seconds * 1e3:,.3g} ms a step at an MFU of {mfu:.0%} of "
            f"{(hardware.peak_flops or 0) / 1e12:,.0f} TFLOP/s: {step.positions / seconds:,.0f} "
            f"tokens/s, {seconds * steps / 3600:,.1f} hours for {steps:,} steps{longest}"
        )
    for kind, total in step.collectives.items():
        lines.append(f"  {kind:<18}  {total.count:,} a step, {format_bytes(total.bytes)} a chip")
    if step.collectives:
        lines.append(f"  the largest of them has {format_bytes(step.largest_collective)}")
    if step.largest is not None:
        lines.append(f"  largest     {_describe_largest(step.largest, parts, part)}")
    return "\n".join(lines)


def _describe_memory(memory: Footprint, hbm_bytes: int | None) -> str:
    parts = (
        f"{format_bytes(memory.arguments)} of state and batch, "
        f"{format_bytes(memory.temporaries)} of temporaries, "
        f"{format_bytes(memory.program)} of program"
    )
    used = f"{format_bytes(memory.used)} ({parts})"
    if hbm_bytes is None:
        return used
    left = hbm_bytes - memory.used
    rest = f"{format_bytes(left)} left" if left >= 0 else f"{format_bytes(-left)} too much"
    return f"{used} of {format_bytes(hbm_bytes)}, {rest}"


def _describe_largest(largest: int, parts: int, part: str) -> str:
    if not largest:
        return "not even one example fits"
    fit = f"{largest:,} examples a {part} fit, {largest * parts:,} in all"
    return f"{fit}; the next round number does not"


if __name__ == "__main__":
    run(main)
