"""Paths on this machine's disks and in object stores (``gs://``, ``s3://``), by ``etils.epath``."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from bert_jax.errors import FULL_DISK, UserError, first_line


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path to work with; one in an object store offers what ``pathlib.Path`` does, by epath."""
    if not is_remote(path):
        return Path(path).expanduser()
    remote: Any = epath.Path(path)
    return remote


def is_directory(path: Path) -> bool:
    """Whether there is a directory; of a store, whether something lies under the path.

    Raises:
      UserError: a store cannot be reached, which ``is_dir`` would take for an absent directory.
    """
    if not is_remote(path):
        return path.is_dir()
    with store_errors(path):
        try:
            return any(True for _ in path.iterdir())
        except FileNotFoundError:
            return False


def file_size(path: Path) -> int:
    """The bytes of a file."""
    return int(epath.Path(path).stat().length)


def remove_directory(path: Path) -> None:
    """Removes a directory with all that it holds, if there is one."""
    epath.Path(path).rmtree(missing_ok=True)


@contextlib.contextmanager
def store_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what an object store's library raises into a sentence; of other paths it does nothing.

    Raises:
      UserError: the store cannot be reached or refuses, or its library is not installed.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        if not is_remote(path):
            raise
        raise UserError(
            f"{path} is in an object store whose library is not installed "
            f"({first_line(error)}); for gs:// pip install -e '.[gcs]'"
        ) from None
    # Network, credentials and permissions fail as many types, most of them the libraries' own.
    except Exception as error:
        is_of_a_disk = isinstance(error, OSError) and error.errno in FULL_DISK  # of this machine
        if not is_remote(path) or is_of_a_disk:
            raise
        raise UserError(
            f"{path} cannot be reached ({first_line(error)}); check the path and your credentials"
        ) from None


@contextlib.contextmanager
def local_place(path: Path) -> Iterator[Path]:
    """Where to make a file or a directory: ``path``, or a disk, from where it is copied there."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / path.name
        yield local
        copy(local, path)


def copy(source: Path, target: Path) -> None:
    """Copies a file, or a directory with all that it holds, between disks and object stores."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for entry in sorted(source.iterdir()):
            copy(entry, target / entry.name)
        return
    with epath.Path(source).open("rb") as read, epath.Path(target).open("wb") as written:
        shutil.copyfileobj(read, written)
