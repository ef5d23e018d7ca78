"""Compares what runs of several settings came to, over several seeds each."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from bert_jax.training.result import Result

# Keys of the config with their values, as text.
Settings: TypeAlias = tuple[tuple[str, str], ...]


class Point(NamedTuple):
    """What the runs of one point of a grid came to.

    Attributes:
      settings: the point.
      results: one for each seed.
    """

    settings: Settings
    results: tuple[Result, ...]

    def mean(self, metric: str) -> float:
        """The mean of a metric over the seeds."""
        return statistics.fmean(result.values[metric] for result in self.results)

    def deviation(self, metric: str) -> float | None:
        """The standard deviation over the seeds, with n-1; None for a single one, or NaN."""
        values = [result.values[metric] for result in self.results]
        if not all(map(math.isfinite, values)):
            return math.nan  # which statistics.stdev does not take
        return statistics.stdev(values) if len(values) > 1 else None

    def score(self) -> float:
        """The mean of the metric that decides, turned so that higher is better."""
        first = self.results[0]
        score = self.mean(first.selection) * (1 if first.higher_is_better else -1)
        return -math.inf if math.isnan(score) else score


def best_of(points: Sequence[Point]) -> Point:
    """The point with the best mean of the metric that decides, the first of equals."""
    return max(points, key=Point.score)


def shared_metrics(points: Sequence[Point]) -> list[str]:
    """The metrics that all runs have, the one that decides first."""
    first, *others = (result for point in points for result in point.results)
    shared = [name for name in first.values if all(name in result.values for result in others)]
    return sorted(shared, key=lambda name: name != first.selection)


def table(points: Sequence[Point]) -> list[str]:
    """A line for each point: its settings, and mean ± standard deviation of each metric."""
    metrics = shared_metrics(points)
    rows = [[*(key for key, _ in points[0].settings), "seeds", *metrics]]
    for point in points:
        cells = [*(value for _, value in point.settings), str(len(point.results))]
        for metric in metrics:
            deviation = point.deviation(metric)
            spread = "" if deviation is None else f" ± {deviation:.4f}"
            cells.append(f"{point.mean(metric):.4f}{spread}")
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
