"""Exact evaluation: every example once, as sums over weights, whatever the batch size."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.training.metrics import Ratio, Sums, fetch, merge
from bert_jax.training.processes import to_host
from bert_jax.training.sharding import to_global

Outputs: TypeAlias = Mapping[str, jax.Array]


class Evaluation(NamedTuple):
    """What all batches gave together, on the host.

    Attributes:
      sums: added up.
      outputs: of all examples, in their order; without those that filled up the last batch.
    """

    sums: dict[str, Ratio]
    outputs: dict[str, np.ndarray]


def evaluate(
    step: Callable[[Any, Mapping[str, jax.Array]], tuple[Sums, Outputs]],
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    examples: int,
    mesh: Mesh,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Adds up the sums of all batches and collects their outputs.

    Args:
      step: compiled; gives a batch's sums, and its outputs by example.
      params: the parameters.
      batches: this process's rows of each batch, at least one batch.
      examples: how many examples there are; batches may hold more, at the end.
      mesh: the device mesh.
      stop: asked before each batch; when true, the evaluation is given up.

    Returns:
      Sums and outputs, or None when it was given up.
    """
    sums: list[dict[str, Ratio]] = []
    outputs: list[dict[str, np.ndarray]] = []

    def take(pending: tuple[Sums, Outputs]) -> None:
        fetched = fetch(pending[0])
        sums[:] = [merge(sums[0], fetched) if sums else fetched]
        outputs.append(to_host(dict(pending[1])))

    pending: tuple[Sums, Outputs] | None = None
    for batch in batches:
        if stop():
            return None
        running = step(params, to_global(batch, mesh))
        # The batch before is fetched while this one is computed.
        if pending is not None:
            take(pending)
        pending = running
    assert pending is not None
    take(pending)
    joined = {name: _join([part[name] for part in outputs])[:examples] for name in outputs[0]}
    return Evaluation(sums[0], joined)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """Joins along the first axis; others are filled up with zeros, for lengths may differ."""
    widest = np.max([part.shape[1:] for part in parts], axis=0)
    filled = [
        np.pad(
            part, [(0, 0), *((0, most) for most in np.subtract(widest, part.shape[1:], dtype=int))]
        )
        for part in parts
    ]
    return np.concatenate(filled)
