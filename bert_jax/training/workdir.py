"""A run's working directory: one run at a time, and the names of what it holds."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from bert_jax.errors import UserError
from bert_jax.training.atomic_file import write_atomically

REPORT = "report.html"
CONFIG = "config.json"
_LOCK = ".lock"


@contextlib.contextmanager
def claim_workdir(workdir: str) -> Iterator[Path]:
    """Makes the directory and holds its lock; the system frees the lock however the run ends.

    Raises:
      UserError: another run has it, or it cannot be written.
    """
    path = Path(workdir).expanduser()
    lock = filelock.FileLock(path / _LOCK)
    try:
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
        lock.release()


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Writes the resolved config as indented JSON."""
    write_atomically(path, json.dumps(config, indent=2).encode() + b"\n")
