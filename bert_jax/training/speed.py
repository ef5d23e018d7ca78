"""How fast a run is: real tokens a second, share of the hardware's peak, time without data."""

import time
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


class SpeedMeter:
    """Measures between two readings; time outside of ``running`` stretches does not count.

    Args:
      peak_flops: FLOP/s of all devices together, or None where it is not known.
    """

    def __init__(self, peak_flops: float | None):
        self._peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured: after an evaluation or a compilation."""
        self._started = time.perf_counter()
        self._tokens = 0.0
        self._flops = 0.0
        self._waited = 0.0

    def next(self, batches: Iterator[Item]) -> Item:
        """Takes the next batch and counts the time until it came."""
        asked = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - asked
        return batch

    def count(self, tokens: float, flops_per_token: float | None) -> None:
        """Counts a finished step's real tokens."""
        self._tokens += tokens
        self._flops += tokens * (flops_per_token or 0.0)

    def read(self) -> dict[str, float]:
        """The values since the last reading, by their names in the log; then restarts."""
        seconds = time.perf_counter() - self._started
        values = {"speed/data_wait": self._waited / seconds}
        if self._tokens:
            values["speed/tokens_per_second"] = self._tokens / seconds
        if self._flops and self._peak_flops:
            values["speed/mfu"] = self._flops / seconds / self._peak_flops
        self.restart()
        return values
