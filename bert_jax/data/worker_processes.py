"""Worker processes and the one that started them: what either does when the other is killed."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

from bert_jax.errors import UserError


@contextlib.contextmanager
def explain_killed_worker() -> Iterator[None]:
    """Turns a broken pool of processes into a sentence.

    Raises:
      UserError: when a worker of the block's pool was killed.
    """
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "A worker process was killed, as happens when memory runs out; give fewer --workers"
        ) from None


def end_with_parent() -> None:
    """Has this process end when the one that started it has died, however that came about.

    A worker waits for work on a pipe or a lock that, with its parent gone, nobody will write to or
    let go. In a process that ``multiprocessing`` did not start it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)  # of the main thread nothing can be asked
