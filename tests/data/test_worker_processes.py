"""Worker processes do not outlive the process that started them, even when it is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POOL = """
import concurrent.futures, multiprocessing, threading
from bert_jax.data.worker_processes import end_with_parent

def work():
    print("at work", flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(1, context, initializer=end_with_parent)
    pool.submit(work).result()
"""
LOADER = """
import threading
from bert_jax.data.loader import prefetch

def make(number):
    print("at work", flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    next(prefetch(make, 0, 5, workers=1))
"""


@pytest.mark.parametrize("program", [POOL, LOADER], ids=["pool", "loader"])
def test_workers_end_with_the_process_that_started_them(tmp_path, program):
    path = tmp_path / "program.py"
    path.write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "at work\n"
    process.kill()
    # Its end comes when nobody holds the pipe any more.
    process.communicate(timeout=60)
