"""Feeds batches, made ahead of time in the background by Grain."""

import contextlib
import functools
import itertools
import signal
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from typing import TypeVar

import grain
import jax
import numpy as np
from absl import flags

from bert_jax.data.worker_processes import end_with_parent
from bert_jax.errors import UserError

Item = TypeVar("Item")


def prefetch(
    make: Callable[[int], Item], first: int, end: int, *, ahead: int = 4, workers: int = 0
) -> Generator[Item, None, None]:
    """Yields ``make(first)``, ``make(first + 1)``, ..., ``make(end - 1)``.

    Because a batch is a pure function of its number, starting at one number costs the same as
    starting at another, and no state of this iterator is ever saved. Close it when it is left
    before its end: workers hold shared memory.

    Args:
      make: makes an item from its number; with workers it must be picklable.
      first: the first number.
      end: past the last number.
      ahead: how many items to make ahead of the consumer.
      workers: processes that make items, in turn; 0 makes them in a thread of this process.
    """
    if workers:
        make = functools.partial(_make_in_worker, make)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    dataset = grain.MapDataset.range(first, end).map(make).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags.
        processes = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=-(-ahead // workers)
        )
        dataset = dataset.mp_prefetch(processes)
    items = iter(dataset)
    try:
        with _blocked_signals() if workers else contextlib.nullcontext():
            first_items = list(itertools.islice(items, 1))  # workers start when one is wanted
        # What shared memory holds is let go at once, not when the program ends.
        for item in itertools.chain(first_items, items):
            yield jax.tree.map(np.array, item) if workers else item
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise UserError(
            "A worker process of the loader was killed, as happens when memory runs out; give "
            "fewer with --config.loader_workers"
        ) from None
    finally:
        items.close()


def _make_in_worker(make: Callable[[int], Item], number: int) -> Item:
    _end_with_parent_once()
    return make(number)


# Grain starts the processes, and has them begin with nothing of ours but making an item.
_end_with_parent_once = functools.cache(end_with_parent)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Lets processes that are started within go on when a signal to all asks the run to stop.

    They inherit that the signals are blocked, for good; this process has those that came meanwhile
    at the end.
    """
    # Python starts it with the first process, and unblocks the signals then.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
