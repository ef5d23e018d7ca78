"""What a run ran on: versions, devices and the commit, for its report and its checkpoints."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict[str, str]:
    """Describes this process; starts JAX's backend if nothing did before.

    Returns:
      Names as a reader wants to see them, to values. Nothing in it names the user or the machine.
      ``commit`` is there only when the package runs from a git checkout of its own.
    """
    described = {"python": platform.python_version()}
    described |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    described |= {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "usable cores": str(_usable_cores()),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": str(jax.device_count()),
        "processes": str(jax.process_count()),
    }
    commit = _commit()
    return described if commit is None else described | {"commit": commit}


def versions(described: Mapping[str, str]) -> dict[str, str]:
    """Of what ``environment`` returned, the versions that all processes of a run must share."""
    return {package: described[package] for package in _PACKAGES}


def describe_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Tells in words how two environments differ, as when a run goes on somewhere else.

    Args:
      before: what :func:`environment` returned then.
      after: what it returns now.

    Returns:
      Such as ``["jax 0.10.2 -> 0.11.0", "usable cores 2 -> 8"]``; empty when nothing changed.
    """
    return [
        f"{name} {before.get(name, 'unknown')} -> {after.get(name, 'unknown')}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _usable_cores() -> int:
    # What a container or a scheduler left of the machine; macOS and Windows cannot tell.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """The abbreviated commit of this file's checkout, with ``-dirty`` if it was changed since."""
    # Not just any checkout around it: a virtual environment often lies inside someone's project.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return None if tracked is None else _git("describe", "--always", "--dirty", "--abbrev=12")


def _git(*arguments: str) -> str | None:
    """The output of a git command in this file's directory; None when it fails or git is absent."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
