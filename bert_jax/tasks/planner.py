"""What the step of a task's run takes of each chip, told by compiling it."""

import dataclasses
import time
from collections.abc import Mapping

import jax

from bert_jax.errors import UserError
from bert_jax.tasks.base import Phase, Task, sequence_length
from bert_jax.tasks.program import abstract_batch, make_program
from bert_jax.training.collectives import Total, find_collectives, total_by_kind
from bert_jax.training.footprint import Footprint, footprint, largest_batch, out_of_memory
from bert_jax.training.run_description import bytes_per_device
from bert_jax.training.sharding import batch_shards

# A quarter of the time for BERT-base, and a fifth more memory. Newer versions of jax have levels
# instead of efforts; 19 is O1.
_LEAST_EFFORT: Mapping[str, float] = (
    {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
    if hasattr(jax.config, "jax_exec_time_optimization_effort")
    else {"optimization_level": 19, "memory_fitting_level": 19}
)


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What is known of one chip.

    Attributes:
      hbm_bytes: memory that a program can have; None if unknown.
      peak_flops: FLOP/s in bfloat16; None if unknown.
    """

    hbm_bytes: int | None
    peak_flops: float | None


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The step of one phase.

    Attributes:
      phase: the phase, whose batch was compiled.
      positions: tokens of a batch, padding included; 0 where there are none.
      seconds: how long compiling took.
      memory: what the step takes of a chip; None if the compiler refused it, or does not say.
      refusal: what the compiler said if it refused the step as too large.
      fits: whether the step fits; None if that is not known.
      flops: of a chip, by formula, because the compiler counts a loop's body once; None where
        there is no formula.
      collectives: totals by kind.
      largest_collective: bytes of the largest.
      largest: the most examples that fit in each part of the mesh (data × fsdp), as a round number;
        None if that was not searched.
    """

    phase: Phase
    positions: int
    seconds: float
    memory: Footprint | None
    refusal: str | None
    fits: bool | None
    flops: float | None
    collectives: Mapping[str, Total]
    largest_collective: int
    largest: int | None


class Planner:
    """Compiles a task's steps for a mesh.

    Args:
      task: the task.
      mesh: the chips, which need not be here.
      hardware: what is known of one.
      quick: compile with the least effort.

    Raises:
      UserError: the mesh does not divide a batch or a parameter.
    """

    def __init__(
        self, task: Task, mesh: jax.sharding.Mesh, hardware: Hardware, *, quick: bool = False
    ):
        self.task = task
        self.mesh = mesh
        self.hardware = hardware
        self.program = make_program(task, mesh)
        self._quick = quick

    def plan(self, phase: Phase, *, search: bool) -> StepPlan:
        """Compiles the phase's step and, if asked for, others until the largest batch is known.

        Raises:
          UserError: there is to be a search, and the chip's memory is not known.
        """
        if search and self.hardware.hbm_bytes is None:
            raise UserError(
                f"the memory of {self.mesh.devices.flat[0].device_kind!r} is not known; give it "
                "with --hbm_gib, or --no_search"
            )
        batch = abstract_batch(self.task, phase, phase.batch_size, self.mesh)
        length = sequence_length(batch)
        positions = batch["token_ids"].size if length else 0
        per_token = None if length is None else self.task.flops_per_token(length)
        started = time.perf_counter()
        compiled, refusal = self._compile(phase, phase.batch_size)
        seconds = time.perf_counter() - started
        collectives = find_collectives(compiled.as_text() or "") if compiled is not None else []
        memory = footprint(compiled) if compiled is not None else None
        return StepPlan(
            phase=phase,
            positions=positions,
            seconds=seconds,
            memory=memory,
            refusal=refusal,
            fits=self._fits(memory, refusal),
            flops=None if per_token is None else per_token * positions / self.mesh.devices.size,
            collectives=total_by_kind(collectives),
            largest_collective=max((each.bytes for each in collectives), default=0),
            largest=self._search(phase, memory) if search else None,
        )

    def _compile(
        self, phase: Phase, batch_size: int
    ) -> tuple[jax.stages.Compiled | None, str | None]:
        """The compiled step, or what the compiler said when it refused it for want of memory."""
        batch = abstract_batch(self.task, phase, batch_size, self.mesh)
        options = _LEAST_EFFORT if self._quick else None
        try:
            return self.program.compile(batch, self.mesh, options), None
        except jax.errors.JaxRuntimeError as error:
            if (refusal := out_of_memory(error)) is None:
                raise
            return None, refusal

    def _fits(self, memory: Footprint | None, refusal: str | None) -> bool | None:
        if refusal is not None:
            return False
        if memory is None or self.hardware.hbm_bytes is None:
            return None
        return memory.used <= self.hardware.hbm_bytes

    def _search(self, phase: Phase, known: Footprint | None) -> int:
        assert self.hardware.hbm_bytes is not None
        parts = batch_shards(self.mesh)
        microbatches = self.task.config.accumulation_steps

        def used(examples: int) -> int | None:
            if known is not None and examples * parts * microbatches == phase.batch_size:
                return known.used
            compiled, _ = self._compile(phase, examples * parts * microbatches)
            memory = None if compiled is None else footprint(compiled)
            return None if memory is None else memory.used

        first = phase.batch_size // parts // microbatches
        state = bytes_per_device(self.program.state)
        found = largest_batch(used, self.hardware.hbm_bytes, fixed=state, first=first)
        return found * microbatches
