"""What the tests of meshes and of groups of processes share."""

import subprocess
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

# Sums in another order; the model is float32.
TOLERANCE = 2e-5
MESHES: Sequence[Mapping[str, int]] = (
    {"data": 8},
    {"fsdp": 8},
    {"data": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
)


def every_layout(default: Collection[tuple[int, Mapping[str, int]]]) -> list[Any]:
    """All of those meshes on 1, 2 and 4 processes, 8 devices in all, as parameters of a test.

    Args:
      default: which (processes, mesh) are run unless ``-m exhaustive`` asks for the others.
    """
    return [
        pytest.param(
            *(processes, mesh),
            id=f"{processes}x{8 // processes}-{name_of(mesh)}",
            marks=() if (processes, mesh) in default else pytest.mark.exhaustive,
        )
        for processes in (1, 2, 4)
        for mesh in MESHES
    ]


def name_of(mesh: Mapping[str, int]) -> str:
    """A mesh in a test's name: data2-fsdp4."""
    return "-".join(f"{axis}{size}" for axis, size in mesh.items())


def mesh_flags(mesh: Mapping[str, int]) -> list[str]:
    """The settings of a mesh that names every axis it wants more than one device along."""
    return [f"--config.mesh.{axis}={size}" for axis, size in ({"data": 1} | dict(mesh)).items()]


def assert_same(
    records: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]]
) -> None:
    """Two runs' metrics, step by step."""
    assert len(records) == len(expected) > 0
    for record, wanted in zip(records, expected, strict=True):
        assert record == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)


def end(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Waits for all; returns what each said."""
    return [process.communicate(timeout=300)[0] for process in processes]


def assert_finished(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Waits for all, of which none may fail; returns what each said."""
    said = end(processes)
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said
