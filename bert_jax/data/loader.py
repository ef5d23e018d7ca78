"""Feeds batches, made ahead of time in the background by Grain."""

import signal
from collections.abc import Callable, Generator
from typing import TypeVar

import grain
from absl import flags

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
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    dataset = grain.MapDataset.range(first, end).map(make).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags.
        processes = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=-(-ahead // workers)
        )
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_leave_signals_to_the_run)
    batches = iter(dataset)
    try:
        yield from batches
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise UserError(
            "A worker process of the loader was killed, as happens when memory runs out; give "
            "fewer with --config.loader_workers"
        ) from None
    finally:
        batches.close()


def _leave_signals_to_the_run(worker: int, workers: int) -> None:
    """Lets a worker go on when a signal to all processes asks the run to save and stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
