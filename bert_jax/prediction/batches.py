"""Applying a model to any number of rows of tokens, at the speed of the device.

Rows are read in blocks; those of a block are batched with others of about their length, or where
they are short and many share rows of one length, and come out in the order in which they came in.
While the device computes a batch, the next one is made, and
while it computes a block, the next one is tokenised.
"""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from bert_jax.data.packing import pack, pack_batch
from bert_jax.data.rows import Rows, pad_batch
from bert_jax.errors import UserError
from bert_jax.training.sharding import batch_sharding, batch_shards

# Arrays of a batch, whose first axis counts rows, to arrays with the same first axis.
Function: TypeAlias = Callable[[dict[str, Any]], Any]
Item = TypeVar("Item")
RowsOfItems = TypeVar("RowsOfItems", bound=Rows)

# Enough to sort by length, and few enough that the first answers come soon.
ROWS_PER_BLOCK = 4096
# So many batches are worth a compilation for each of more lengths.
_MANY_BATCHES = 64
# Where a model reads packed rows: their length, up to which a row counts as short, how many of
# these share one at most, and how many times fewer rows there are in a batch.
_PACKED_LENGTH, _MOST_IN_A_ROW, _FEWER_ROWS = 64, 16, 4


def apply_to_stream(
    function: Function,
    items: Iterable[Item],
    make_rows: Callable[[Sequence[Item]], RowsOfItems],
    *,
    max_length: int,
    batch_size: int,
    mesh: Mesh | None = None,
    packs: bool = False,
    block_size: int = ROWS_PER_BLOCK,
) -> Iterator[tuple[list[Item], RowsOfItems, Any]]:
    """Applies a function to as many items as come, in memory that does not grow with them.

    Args:
      function: as ``apply_to_rows`` has it.
      items: what rows are made of.
      make_rows: makes the rows of a block, of an item one or several; runs in a thread of its own.
      max_length, batch_size, mesh, packs: as ``apply_to_rows`` has them.
      block_size: items of a block.

    Yields:
      The items of each block, their rows, and the function's arrays for the rows, in their order.

    Raises:
      UserError: ``batch_size`` is below 1.
    """

    def answer(
        block: list[Item], made: concurrent.futures.Future[RowsOfItems]
    ) -> tuple[list[Item], RowsOfItems, Any]:
        rows = made.result()
        return (
            block,
            rows,
            apply_to_rows(
                function,
                rows,
                max_length=max_length,
                batch_size=batch_size,
                mesh=mesh,
                packs=packs,
            ),
        )

    source = iter(items)
    pending: tuple[list[Item], concurrent.futures.Future[RowsOfItems]] | None = None
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as tokenizing:
        # Items are read here: a thread that waits for standard input could not be interrupted.
        while block := list(itertools.islice(source, block_size)):
            coming = tokenizing.submit(make_rows, block)
            if pending is not None:
                yield answer(*pending)
            pending = block, coming
        if pending is not None:
            yield answer(*pending)


def apply_to_rows(
    function: Function,
    rows: Rows,
    *,
    max_length: int,
    batch_size: int,
    mesh: Mesh | None = None,
    packs: bool = False,
) -> Any:
    """Applies a function to rows of about the same length at a time.

    Args:
      function: compiled; returns before its arrays are computed. It meets few shapes: batches of
        ``batch_size`` rows, the last of a smaller power of two, padded to few lengths.
      rows: at least one.
      max_length: the most tokens of a row.
      batch_size: rows at once.
      mesh: devices over which batches are spread where their rows divide; None puts them where the
        function has its other arguments.
      packs: whether the function takes rows that several share too, with ``lengths`` [B, Q], and
        then gives arrays [B, Q, ...].

    Returns:
      The function's arrays for all rows, on the host, in the order of the rows.

    Raises:
      UserError: ``batch_size`` is below 1.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}; give a whole number of at least 1")
    order = np.argsort(rows.lengths, kind="stable")
    short = 0
    if packs and max_length >= _PACKED_LENGTH:
        short = int(np.count_nonzero(rows.lengths <= _PACKED_LENGTH))
        short = short if short > batch_size else 0
    made = itertools.chain(
        _packed(rows, order[:short], batch_size),
        _by_length(rows, order[short:], max_length, batch_size),
    )
    parts, numbers = [], []
    pending: tuple[Any, Any] | None = None
    for batch in made:
        running = function(_spread(batch.arrays, mesh))
        if pending is not None:
            parts.append(_fetch(*pending))
        pending = running, batch.where
        numbers.append(batch.numbers)
    assert pending is not None
    parts.append(_fetch(*pending))
    places = np.argsort(np.concatenate(numbers))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[places], *parts)


class _Batch(NamedTuple):
    """Some rows: their arrays, which they are, and the index of theirs in what comes out."""

    arrays: dict[str, np.ndarray]
    numbers: np.ndarray
    where: Any


def _by_length(rows: Rows, order: np.ndarray, max_length: int, batch_size: int) -> Iterator[_Batch]:
    """Batches of rows of rising lengths, padded to a few of them."""
    lengths = rows.lengths
    many = len(order) >= _MANY_BATCHES * batch_size
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        # A power of two rows, so that few texts do not compute a whole batch.
        size = min(batch_size, 1 << (len(chosen) - 1).bit_length())
        length = min(max_length, _padded_length(int(lengths[chosen[-1]]), many))
        batch = pad_batch(rows.rows(chosen, length), size)
        yield _Batch(batch, chosen, slice(len(chosen)))


def _packed(rows: Rows, order: np.ndarray, batch_size: int) -> Iterator[_Batch]:
    """Batches of rows that several share, all of one length."""
    row_of = pack(rows.lengths[order], _PACKED_LENGTH, _MOST_IN_A_ROW)
    by_row = np.argsort(row_of, kind="stable")
    order, row_of = order[by_row], row_of[by_row]
    whole = max(1, batch_size // _FEWER_ROWS)
    last_row = int(row_of[-1]) if len(row_of) else -1
    for first in range(0, last_row + 1, whole):
        count = min(whole, last_row + 1 - first)
        low, high = np.searchsorted(row_of, [first, first + count])
        chosen, own_row = order[low:high], row_of[low:high] - first
        place = np.arange(len(chosen)) - np.searchsorted(own_row, own_row)
        size = min(whole, 1 << (count - 1).bit_length())
        unpacked = rows.rows(chosen, _PACKED_LENGTH)
        batch = pack_batch(unpacked, own_row, size, _PACKED_LENGTH, _MOST_IN_A_ROW)
        yield _Batch(batch, chosen, (own_row, place))


def mesh_of(params: Any) -> Mesh | None:
    """The mesh over which parameters are laid out; None where they are not."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None


def _padded_length(length: int, many: bool) -> int:
    """A length of few, and of somewhat more for many batches: the longer, the further apart."""
    if length > 128:
        step = 64 if many else 128
    elif length > 64:
        step = 16 if many else 32
    else:
        step = 8 if many else 32
    return -(-length // step) * step


def _spread(batch: dict[str, np.ndarray], mesh: Mesh | None) -> dict[str, Any]:
    if mesh is None or len(batch["lengths"]) % batch_shards(mesh):
        return dict(batch)
    return jax.device_put(batch, batch_sharding(mesh))


def _fetch(running: Any, where: Any) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[where], running)
