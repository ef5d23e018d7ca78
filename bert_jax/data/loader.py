"""Feeds batches, made ahead of time in the background by Grain."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import grain
from absl import flags

from bert_jax.errors import UserError

Item = TypeVar("Item")


def prefetch(
    make: Callable[[int], Item], first: int, end: int, *, ahead: int = 4, workers: int = 0
) -> Iterator[Item]:
    """Yields ``make(first)``, ``make(first + 1)``, ..., ``make(end - 1)``.

    Because a batch is a pure function of its number, starting at one number costs the same as
    starting at another, and no state of this iterator is ever saved.

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
        dataset = dataset.mp_prefetch(processes)
    try:
        yield from dataset
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise UserError(
            "A worker process of the loader was killed, as happens when memory runs out; give "
            "fewer with --config.loader_workers"
        ) from None
