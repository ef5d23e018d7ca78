"""Freed memory is kept: a large block comes back without new page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from bert_jax.training.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(1 << 24)  # 128 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_freed_block_is_not_faulted_in_again():
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", PROGRAM, mode]))
        for mode in ("keep", "default")
    }
    # Huge pages make the default cheaper than a fault for each 4 KiB page.
    assert faults["keep"] < 10 < faults["default"]
