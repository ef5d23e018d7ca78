"""One run in many processes: how they find each other, keep in step, and leave.

Every process runs the same program on its own part of the devices and of the rows. What one of them
computes or decides must be decided alike by all, or they wait for each other for ever.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.storage import as_path, is_remote, store_errors
from bert_jax.training.preemption import Preemption
from bert_jax.training.process_group import ProcessGroup
from bert_jax.training.workdir import Workdir, claim_workdir

# How often a host looks for what another wrote: a file system over a network may show it late.
_LOOKS, _SECONDS_BETWEEN_LOOKS = 25, 0.2


def join(group: ProcessGroup) -> None:
    """Meets the other processes of the run; before anything else asks JAX for its devices.

    Where JAX has its devices already, as in a notebook, the run is of the processes that it knows.
    When not all have met in time, a line says so and this process ends.

    Args:
      group: the processes, as ``ProcessGroup.check`` found them right.
    """
    if jax.distributed.is_initialized():
        return
    meeting_place = group.coordinator or "the cluster's coordinator"
    # JAX itself would end the process with a stack trace that names no address.
    alarm = threading.Timer(
        group.connection_timeout,
        _give_up,
        [f"the processes of this run did not all meet at {meeting_place} within "
         f"{group.connection_timeout} s; check that process 0 runs there, that its port can be "
         "reached, and that every process was started"],
    )  # fmt: skip
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            group.coordinator,
            group.processes,
            group.process,
            initialization_timeout=group.connection_timeout + 60,
            heartbeat_timeout_seconds=group.heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        # Of no cluster that JAX knows of, or too late to look for one: the run is this process.
        alone = "coordinator_address" in str(error) or "before any JAX" in str(error)
        if group.coordinator or not alone:
            raise
    finally:
        alarm.cancel()


def _give_up(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    leave_at_once(EXIT_USER_ERROR)


def leave_at_once(code: int) -> NoReturn:
    """Ends a process that failed, without the meeting at the end that the others will not come to.

    They learn of it by its missing heartbeat. Alone, it is ``sys.exit``.
    """
    if not jax.distributed.is_initialized() and threading.current_thread() is (
        threading.main_thread()
    ):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this is the process that writes logs, reports and small files."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Returns when every process has come to this place in the program."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


@contextlib.contextmanager
def claim_shared_workdir(workdir: str) -> Iterator[Workdir]:
    """The working directory of a run, claimed by its first process for all.

    Nothing keeps two runs apart in an object store, which has no locks.

    Raises:
      UserError: another run has it, it cannot be read and written, or another host does not see it.
    """
    if is_remote(workdir):
        with tempfile.TemporaryDirectory() as files:
            remote = Workdir(as_path(workdir), Path(files))
            with store_errors(workdir):
                remote.fetch()
            try:
                yield remote
            finally:
                if is_first():
                    with store_errors(workdir):
                        remote.publish()
        return
    with claim_workdir(workdir) if is_first() else contextlib.nullcontext(as_path(workdir)) as path:
        if apart := _processes_apart(path):
            raise UserError(
                f"{workdir} is not there, or another one, on the hosts of processes "
                f"{', '.join(map(str, apart))}; give a --workdir on a file system that all hosts "
                "share, or in an object store"
            )
        yield Workdir(path)


def _processes_apart(directory: Path) -> list[int]:
    """The processes that have another directory of this name than the first, or none."""
    if jax.process_count() == 1:
        return []
    name = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(16), np.uint8))
    marker = directory / f".shared-{name.tobytes().hex()}"
    if is_first():
        marker.touch()
    wait_for_all("the working directory is claimed and marked")
    is_there = False
    for _ in range(_LOOKS):
        if is_there := marker.exists():
            break
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    everywhere = multihost_utils.process_allgather(np.array(is_there))
    if is_first():
        marker.unlink()
    return [int(process) for process in np.flatnonzero(~everywhere)]


@contextlib.contextmanager
def tell_process_of_fault() -> Iterator[None]:
    """Adds to an error's traceback which process it was, and that another may have failed first.

    When a process dies, the others' next collective operation fails with the transport's own words.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            error.add_note(
                f"This was process {jax.process_index()} of {jax.process_count()}. Where another "
                "one failed first, its own output says why; the same command goes on."
            )
        raise


def check_agreement(facts: Any, what: str, remedy: str) -> None:
    """Makes sure that all processes start from the same.

    Args:
      facts: plain JSON.
      what: the plural noun that names them.
      remedy: what to give every host.

    Raises:
      UserError: they differ from those of process 0.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
    everywhere = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    different = np.flatnonzero((everywhere != everywhere[0]).any(axis=1)).tolist()
    if different:
        raise UserError(
            f"processes {', '.join(map(str, different))} have other {what} than process 0; give "
            f"every host {remedy}"
        )


class SharedPreemption(Preemption):
    """A SIGTERM or Ctrl-C to one process of a run stops all, at the same point of the program.

    JAX catches SIGTERM and tells the others, so that one is left to it.
    """

    caught = (signal.SIGINT,)

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0
        self._stopped = False

    def stops_here(self) -> bool:
        """Whether all stop here; all ask at the same points and get the same answers."""
        self._asked += 1
        self._stopped = self._stopped or multihost_utils.reached_preemption_sync_point(self._asked)
        return self._stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        signal.raise_signal(signal.SIGTERM)


def make_preemption() -> Preemption:
    """What notes the signals of this run."""
    return Preemption() if jax.process_count() == 1 else SharedPreemption()


def to_host(tree: Any) -> Any:
    """Brings arrays whole to every host; every process must ask for the same.

    Args:
      tree: of arrays, on any of the run's devices.

    Returns:
      The tree with NumPy arrays.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
