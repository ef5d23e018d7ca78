"""Metrics as sums over weights, divided once.

A mean of means depends on how examples were grouped; a ratio of sums does not. So losses and
metrics travel as (total, weight) pairs that add up over devices, microbatches, steps and hosts.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

Scalar: TypeAlias = jax.Array | np.ndarray | float


class Ratio(NamedTuple):
    """A mean in the making: the sum of weighted values, and the sum of weights."""

    total: Scalar
    weight: Scalar

    def merge(self, other: "Ratio") -> "Ratio":
        """The ratio over both sets of examples."""
        return Ratio(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> Scalar:
        """The weighted mean; NaN, without a warning, where there is no weight."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(self.total, self.weight)


Sums: TypeAlias = Mapping[str, Ratio]


def merge(first: Sums, second: Sums) -> dict[str, Ratio]:
    """Adds two sets of the same metrics."""
    return {name: ratio.merge(second[name]) for name, ratio in first.items()}


def fetch(sums: Sums) -> dict[str, Ratio]:
    """Brings metrics to the host as float64, so that adding up many batches loses nothing."""
    return {
        name: Ratio(np.float64(ratio.total), np.float64(ratio.weight))
        for name, ratio in jax.device_get(dict(sums)).items()
    }
