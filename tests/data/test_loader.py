"""Batches come in order from worker processes, which a run's signals leave alone."""

import functools
import itertools
import multiprocessing
import os
import signal

import numpy as np

from bert_jax.data.loader import prefetch


def stop(process):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)


def test_workers_go_on_when_all_processes_are_told_to_stop(monkeypatch):
    original = multiprocessing.context.SpawnProcess.start

    def start_and_stop(process):
        original(process)
        stop(process)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start_and_stop)
    make = functools.partial(np.full, 3)  # an array of the number it is called with
    items = prefetch(make, 5, 205, workers=2)
    first = next(items)
    for process in multiprocessing.active_children():
        stop(process)
    rest = list(items)
    # No shared memory, which would be held for as long as JAX holds a batch.
    assert {type(item) for item in [first, *rest]} == {np.ndarray}
    assert [item.tolist() for item in [first, *rest]] == [[number] * 3 for number in range(5, 205)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()  # this process is not deaf


def test_what_is_left_before_its_end_leaves_no_process():
    items = prefetch(functools.partial(np.full, 3), 0, 1000, workers=2)
    assert [item[0] for item in itertools.islice(items, 3)] == [0, 1, 2]
    assert len(multiprocessing.active_children()) == 2
    items.close()
    assert multiprocessing.active_children() == []
