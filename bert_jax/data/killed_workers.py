"""What is said of a worker process that the system killed."""

import contextlib
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
