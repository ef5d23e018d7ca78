"""What is known of chips, against what their compiler says, in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A program that no chip can hold: 256 GiB.
PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from bert_jax.training.footprint import out_of_memory
from bert_jax.training.topology import hbm_bytes, topology_devices
told = {}
for name in ("v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1", "v5e:3x5", "v4:2x2x4", "v6e:16x16"):
    devices = topology_devices(name)
    sharding = SingleDeviceSharding(devices[0])
    large = jax.ShapeDtypeStruct((1 << 16, 1 << 20), jnp.float32, sharding=sharding)
    try:
        jax.jit(lambda x: x + 1).lower(large).compile()
    except jax.errors.JaxRuntimeError as error:
        told[name] = (len(devices), hbm_bytes(devices[0]) / 2**30, out_of_memory(error))
print(json.dumps(told))
"""


@pytest.mark.slow
def test_the_memory_of_chips_is_what_the_compiler_says():
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    chips = {name: count for name, (count, _, _) in told.items()}
    assert chips == {
        **{"v4:1x1x1": 1, "v5e:1x1": 1, "v5p:1x1x1": 1, "v6e:1x1": 1},
        **{"v5e:3x5": 15, "v4:2x2x4": 16, "v6e:16x16": 256},
    }
    for _, gib, refusal in told.values():
        available = re.search(r"exceeds available HBM \(([\d.]+)G\)", refusal)
        assert gib == pytest.approx(float(available[1]), abs=0.015)  # versions differ by 0.01
