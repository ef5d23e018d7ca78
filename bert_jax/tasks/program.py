"""What a task's run compiles: its update, with the optimizer and the state that it changes.

``bert_jax.train`` compiles it for real batches, ``bert_jax.plan`` for abstract ones.
"""

import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from bert_jax.errors import UserError
from bert_jax.models.config import KERNEL_FIELDS, check_platform
from bert_jax.models.freezing import FreezeOptions, trainable
from bert_jax.tasks.base import Phase, Task
from bert_jax.training.optimizers import OptimizerConfig, make_optimizer
from bert_jax.training.partition import Masking
from bert_jax.training.sharding import (
    ACTIVATION_RULES,
    batch_sharding,
    batch_shards,
    place,
    replicated,
)
from bert_jax.training.state import TrainState, abstract_state
from bert_jax.training.step import StepSettings, make_train_step

# Of XLA's compiler, by platform. On an H100 cuBLAS's products are as fast as Triton's; where XLA
# need not find that out, it lets them add what they would be added to, and compiles in half the
# time. Products of one input are no faster for being joined, which takes copies.
_COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0},
}


class Program(NamedTuple):
    """The update of a run.

    Attributes:
      optimizer: the optimizer.
      masking: says which parameters are trained.
      state: shapes, dtypes and shardings of the state.
      step: the jitted ``(state, batch, settings) -> (state, sums)``, which takes over the state's
        memory.
      make_settings: makes the step's settings, on all devices of the mesh.
    """

    optimizer: optax.GradientTransformation
    masking: Masking
    state: TrainState
    step: Any
    make_settings: Callable[[], StepSettings]

    def compile(
        self, batch: Mapping[str, Any], mesh: Mesh, options: Mapping[str, Any] | None = None
    ) -> jax.stages.Compiled:
        """Compiles the step for a batch's shapes: for the mesh's devices, which may not be here.

        Args:
          batch: global arrays, real or abstract, with their shardings.
          mesh: the mesh that the program was made for.
          options: of XLA's compiler, beside ours or in their place.
        """
        platform, flags = mesh.devices.flat[0].platform, os.environ.get("XLA_FLAGS", "")
        options = compiler_options(platform, flags) | dict(options or {})
        with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
            settings = jax.tree.map(
                lambda leaf: place(leaf, replicated(mesh)), jax.eval_shape(self.make_settings)
            )
            return self.step.lower(self.state, batch, settings).compile(options)


def make_program(task: Task, mesh: Mesh) -> Program:
    """Makes the update of a task's run.

    Args:
      task: the task, whose config says how it is trained.
      mesh: the devices to train on.

    Raises:
      UserError: the config cannot be used, or the mesh does not divide a batch or a parameter.
    """
    config = task.config
    check_settings(config, mesh)
    _check_least("total_steps", config.total_steps, 1)
    for phase in task.phases:
        _check_batch(phase.batch_size, config, mesh)
    rated = OptimizerConfig.from_mapping(config.optimizer)  # refuses a peak that is out of range
    optimizer, schedule = make_optimizer(
        dataclasses.replace(rated, learning_rate=1.0), config.total_steps
    )
    freeze = FreezeOptions.from_mapping(config.get("freeze", {}))
    masking = functools.partial(trainable, options=freeze)
    state = abstract_state(task.initialise, optimizer, mesh, masking)
    step = jax.jit(
        make_train_step(task, optimizer, schedule, config.accumulation_steps, masking),
        donate_argnums=0,
        # Left to itself, the partitioner may lay a parameter out otherwise than it came in.
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), None),
    )

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def make_settings() -> StepSettings:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)  # 0 makes the parameters
        return StepSettings(key, jnp.float32(rated.learning_rate))

    return Program(optimizer, masking, state, step, make_settings)


def compiler_options(platform: str, flags: str) -> dict[str, Any]:
    """What XLA's compiler is told of a step.

    Args:
      platform: of the devices, as JAX calls it.
      flags: that the user gave XLA, in the environment and not in a file that it names; what they
        speak of is left to them.
    """
    options = _COMPILER_OPTIONS.get(platform, {})
    return {name: value for name, value in options.items() if name not in flags}


def abstract_batch(
    task: Task, phase: Phase, batch_size: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a phase's largest global batch, of so many examples."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *one.shape), one.dtype, sharding=sharding)
        for name, one in task.example_shapes(phase).items()
    }


def check_settings(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Refuses what cannot be used whatever the data are, before they are read.

    Args:
      config: of a run.
      mesh: the devices to train on.

    Raises:
      UserError: a number is too small, a kernel is not for these devices, or the mesh does not
        divide the batch.
    """
    least = {"batch_size": 1, "log_every_steps": 1, "accumulation_steps": 1}
    least |= {"evaluate_every_steps": 0, "checkpoint_every_steps": 0, "checkpoints.keep_last": 1}
    least |= {"loader_workers": 0} if "loader_workers" in config else {}
    least |= {"second_phase.batch_size": 0} if "second_phase" in config else {}
    for key, lowest in least.items():
        _check_least(key, functools.reduce(operator.getitem, key.split("."), config), lowest)
    for field in KERNEL_FIELDS:
        kernel = config.get("model", {}).get(field, "xla")
        check_platform(field, kernel, mesh.devices.flat[0].platform)
    _check_batch(config.batch_size, config, mesh)


def _check_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"--config.{key}={value} must be at least {least}")


def _check_batch(batch_size: int, config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    parts = batch_shards(mesh) * config.accumulation_steps
    if batch_size % parts:
        raise UserError(
            f"a batch of {batch_size} does not divide into {batch_shards(mesh)} parts of the mesh "
            f"(data × fsdp) times {config.accumulation_steps} accumulation steps; give a batch "
            f"size that is a multiple of {parts}"
        )
