"""Which record a row reads: a new random order every epoch, entered at any row in constant time."""

import grain
import numpy as np

from bert_jax.data.randomness import purpose_seed

# Grain's shuffle works on 32-bit numbers.
_MOST_RECORDS = 2**32 - 1


def shuffled_rows(rows: int, places: np.ndarray, seed: int) -> np.ndarray:
    """The rows of a table in memory that a run's endless stream has at some places: int64 [n].

    Args:
      rows: of the table, at least 1.
      places: int64 [n], positions in the stream.
      seed: the run's seed.
    """
    return shuffled_records(rows, places, purpose_seed(seed, "rows"))


def shuffled_records(records: int, rows: np.ndarray, seed: int) -> np.ndarray:
    """The records that rows of an endless, reshuffled stream read.

    Args:
      records: how many records one epoch has, at least 1.
      rows: int64 [n], positions in the stream; row ``r`` belongs to epoch ``r // records``.
      seed: the stream's seed.

    Returns:
      int64 [n] in ``range(records)``. Within an epoch every record comes exactly once.

    Raises:
      ValueError: there are no records, or more than 32 bits can number.
    """
    if not 1 <= records <= _MOST_RECORDS:
        raise ValueError(f"cannot shuffle {records} records")
    epochs, positions = np.divmod(rows, records)
    seeds = {epoch: purpose_seed(seed, f"epoch {epoch}") for epoch in np.unique(epochs).tolist()}
    return np.fromiter(
        (
            grain.experimental.index_shuffle(
                position, max_index=records - 1, seed=seeds[epoch], rounds=4
            )
            for epoch, position in zip(epochs.tolist(), positions.tolist(), strict=True)
        ),
        dtype=np.int64,
        count=len(rows),
    )
