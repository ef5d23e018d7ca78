"""Exact evaluation: every example once, as sums over weights, whatever the batch size."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.training.metrics import Ratio, Sums, fetch, merge
from bert_jax.training.sharding import to_global


def evaluate(
    step: Callable[[Any, Mapping[str, jax.Array]], Sums],
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Ratio] | None:
    """Adds up the sums of all batches.

    Args:
      step: compiled; gives a batch's sums.
      params: the parameters.
      batches: this process's rows of each batch, at least one batch.
      mesh: the device mesh.
      stop: asked before each batch; when true, the evaluation is given up.

    Returns:
      The sums on the host, or None when it was given up.
    """
    total: dict[str, Ratio] | None = None
    pending: Sums | None = None
    for batch in batches:
        if stop():
            return None
        running = step(params, to_global(batch, mesh))
        # The sums of the batch before are fetched while this one is computed.
        if pending is not None:
            total = _add(total, pending)
        pending = running
    assert pending is not None
    return _add(total, pending)


def _add(total: dict[str, Ratio] | None, sums: Sums) -> dict[str, Ratio]:
    fetched = fetch(sums)
    return fetched if total is None else merge(total, fetched)
