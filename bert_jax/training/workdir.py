"""A run's working directory: where it is, one run at a time, and the names of what it holds."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from bert_jax.errors import UserError
from bert_jax.storage import copy, is_remote
from bert_jax.training.atomic_file import write_atomically

REPORT = "report.html"
CONFIG = "config.json"
_LOCK = ".lock"


class Workdir:
    """A run's working directory, on a disk or in an object store.

    Attributes:
      place: where the run keeps everything; checkpoints are read and written there.
      files: the same directory or, of one in a store, a directory of this machine with all but the
        checkpoints, for a store has no files that grow.
    """

    def __init__(self, place: Path, files: Path | None = None):
        self.place = place
        self.files = place if files is None else files
        self._published: dict[Path, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Brings the store's files here, but not those of directories in it."""
        if self.files == self.place or not self.place.exists():
            return
        for file in self.place.iterdir():
            if not file.is_dir():
                copy(file, self.files / file.name)

    def publish(self) -> None:
        """Brings the files that changed to the store."""
        if self.files == self.place:
            return
        for file in sorted(self.files.rglob("*")):
            status = file.stat()
            state = (status.st_mtime_ns, status.st_size)
            if not file.is_dir() and self._published.get(file) != state:
                there = self.place / file.relative_to(self.files).as_posix()
                there.parent.mkdir(parents=True, exist_ok=True)
                copy(file, there)
                self._published[file] = state


@contextlib.contextmanager
def claim_workdir(workdir: str) -> Iterator[Path]:
    """Makes the directory and holds its lock; the system frees the lock however the run ends.

    A directory that was made here, and in which nothing was written, is removed again.

    Raises:
      UserError: another run has it, it cannot be written, or it is in an object store, which has no
        locks.
    """
    if is_remote(workdir):
        raise UserError(
            f"{workdir} is in an object store, where only single runs are kept; give a directory"
        )
    path = Path(workdir).expanduser()
    lock = filelock.FileLock(path / _LOCK)
    try:
        is_new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise UserError(
            f"{workdir} is in use by another run; wait for it to end, or give another --workdir"
        ) from error
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}); give another --workdir"
        ) from error
    try:
        yield path
    finally:
        if is_new:
            _remove_if_empty(path)
        lock.release()


def _remove_if_empty(path: Path) -> None:
    """Removes a directory that holds nothing but its lock and empty directories.

    Directories are only removed by the system's own call, which refuses one with anything in it,
    whatever another process writes meanwhile.
    """
    held = list(path.rglob("*"))
    if all(entry.is_dir() for entry in held if entry != path / _LOCK):
        with contextlib.suppress(OSError):
            (path / _LOCK).unlink()
            for directory in (*sorted(filter(Path.is_dir, held), reverse=True), path):
                directory.rmdir()


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Writes the resolved config as indented JSON."""
    write_atomically(path, json.dumps(config, indent=2).encode() + b"\n")
