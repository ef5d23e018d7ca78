"""TPU slices by name, to compile for where there are none.

``libtpu`` has the compiler; it runs on any Linux machine.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from bert_jax.errors import UserError

GIB = 2**30
_EXAMPLES = "v5e:2x2, v5e:16x16, v4:2x2x1, v5p:2x2x1 or v6e:16x16"


class _Chip(NamedTuple):
    """A kind of chip: its slices' dimensions, the most chips of one, the compiler's options."""

    dimensions: int
    most: int
    options: dict[str, Any]


# A v4 or v5p chip has two cores, which are used as one.
_CHIPS = {
    "v4": _Chip(3, 4096, {"chip_config_name": "megacore"}),
    "v5e": _Chip(2, 256, {}),
    "v5p": _Chip(3, 8960, {"chip_config_name": "megacore"}),
    "v6e": _Chip(2, 256, {}),
}

# A chip's memory in bytes by `jax.Device.device_kind`: what the compiler lets a program have, which
# is some of the 32, 16, 95 and 32 GiB less. It says so itself when it refuses a larger one.
_HBM = {
    "TPU v4": 30.75 * GIB,
    "TPU v5 lite": 15.75 * GIB,
    "TPU v5": 95.73 * GIB,
    "TPU v6 lite": 31.25 * GIB,
}


def topology_devices(name: str) -> Sequence[jax.Device]:
    """The chips of a slice, which programs can be compiled for but not run on.

    The process's JAX is set to the CPU, so that no accelerator of this machine is taken, and keeps
    no cache of compiled programs.

    Args:
      name: chip and shape, such as ``v5e:16x16``.

    Raises:
      UserError: the name means no slice, or libtpu is not installed.
    """
    matched = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    kind, shape = matched.groups() if matched else ("", "")
    if kind not in _CHIPS:
        raise UserError(f"--topology {name!r} is unknown; give a slice such as {_EXAMPLES}")
    chip = _CHIPS[kind]
    sizes = [int(size) for size in shape.split("x")]
    if len(sizes) != chip.dimensions or not 1 <= math.prod(sizes) <= chip.most:
        example = f"{kind}:{'x'.join('2' * chip.dimensions)}"
        raise UserError(
            f"--topology {name!r} has no possible shape: {kind} slices have {chip.dimensions} "
            f"dimensions and 1 to {chip.most} chips, such as {example}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology needs the compiler for TPUs, which is not installed; "
            "pip install -e '.[tpu]' brings it (libtpu)"
        )
    jax.config.update("jax_platforms", "cpu")
    # A program for chips that are not here cannot be loaded from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    # What libtpu asks of a TPU machine's environment; and it locks out a second process, which
    # matters to those that run programs only. It reads these when it is loaded, below.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    # By default a slice is of whole hosts of 2x2 chips.
    whole_hosts = sizes[0] % 2 == 0 and sizes[1] % 2 == 0
    host = {} if whole_hosts else {"chips_per_host_bounds": (1, 1, 1)}
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=name, **host, **chip.options
    )
    return described.devices


def hbm_bytes(device: jax.Device) -> int | None:
    """The memory that programs can have of a device, or None where that is not known."""
    if device.device_kind in _HBM:
        return int(_HBM[device.device_kind])
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a device that is not here, of a kind that is not known
        return None
