"""Writing files so that a reader, or the next start of a run, never meets half of one."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bert_jax.errors import UserError
from bert_jax.storage import as_path, is_remote


@contextlib.contextmanager
def explain_write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an ``OSError`` of the block (full, read-only or missing disk) into a ``UserError``.

    But not that of a pipe that nobody reads any more.

    Args:
      path: what is being written; the message names it.

    Raises:
      UserError: when the block raised an ``OSError``.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{os.fspath(path)} cannot be written ({reason}); free some space there, "
            "correct its permissions, or choose another directory"
        ) from error


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replaces ``path`` by ``content``: after a crash it holds the old bytes or the new ones.

    Args:
      path: the file to write, which may be in an object store, where writing is always so; on a
        disk its directory must exist. Only one process may write it.
      content: the whole new content.

    Raises:
      UserError: when the disk is full or the directory cannot be written.
    """
    if is_remote(path):
        as_path(path).write_bytes(content)
        return
    with open_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Gives a file to write, which becomes ``path`` when the block ends well.

    Args:
      path: the file to replace, whose permissions stay; of a link, what it points to. A device or a
        pipe is written as it comes. Its directory must exist, and only one process may write it.

    Raises:
      UserError: when the disk is full or the directory cannot be written.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        # By the name that was given: what /dev/stdout leads to may have none.
        with explain_write_errors(path), open(path, "wb") as file:
            yield file
        return
    target = Path(path).resolve()
    # In the same directory, because a rename is atomic only within one file system; and of a fixed
    # name, so that what a killed run leaves behind is overwritten by the next.
    partial = target.with_name(f".{target.name}.partial")
    with explain_write_errors(target):
        try:
            with open(partial, "wb") as file:
                if target.exists():
                    shutil.copymode(target, partial)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


@contextlib.contextmanager
def write_directory_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty directory to fill, which becomes ``path`` when the block ends well.

    Args:
      path: must not exist, or be an empty directory; only one process may write it.

    Raises:
      UserError: something is there already, or the disk is full or cannot be written.
    """
    target = Path(path).expanduser().resolve()
    if target == Path.cwd():
        raise UserError(f"{os.fspath(path)} is the directory that this runs in; name another")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{os.fspath(path)} exists already; remove it, or name another directory")
    partial = target.with_name(f".{target.name}.partial")
    with explain_write_errors(path):
        made = [parent for parent in target.parents if not parent.exists()]  # the deepest first
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in made:
                with contextlib.suppress(OSError):  # something is in it
                    parent.rmdir()
