"""What the compiler is told of a step."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bert_jax.tasks import program
from bert_jax.tasks.program import Program, compiler_options
from bert_jax.training.sharding import make_mesh
from bert_jax.training.step import StepSettings


class RecordingStep:
    """A step that is compiled to the options that it was compiled with."""

    def lower(self, *arguments: Any) -> "RecordingStep":
        return self

    def compile(self, options: dict[str, Any]) -> dict[str, Any]:
        return options


def test_gpus_have_options_but_for_those_that_the_user_gave() -> None:
    ours = compiler_options("gpu", "")
    assert ours == {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
    given = compiler_options("gpu", "--xla_gpu_enable_triton_gemm=true --xla_gpu_autotune_level=4")
    assert given == {"xla_gpu_dot_merger_threshold_mb": 0}
    assert compiler_options("cpu", "") == compiler_options("tpu", "") == {}


def test_this_jax_knows_the_options() -> None:
    """Whatever the device: a name that it did not know would stop every run on a GPU."""
    assert jax.jit(jnp.sin).lower(1.0).compile(compiler_options("gpu", ""))(0.0) == 0.0


def test_the_step_is_compiled_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(program._COMPILER_OPTIONS, "cpu", {"first": 1, "second": 2})
    monkeypatch.delenv("XLA_FLAGS", raising=False)

    def make_settings() -> StepSettings:
        return StepSettings(jax.random.key(0), jnp.float32(1.0))

    made = Program._make((None, None, None, RecordingStep(), make_settings))
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    assert made.compile({}, mesh) == {"first": 1, "second": 2}
    assert made.compile({}, mesh, {"second": 3}) == {"first": 1, "second": 3}
