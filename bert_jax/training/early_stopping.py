"""Ends a run whose validation score no longer gets better."""

import math
from collections.abc import Iterable


class EarlyStopping:
    """Counts evaluations without improvement.

    Args:
      patience: evaluations without a better score after which to stop; 0 never stops.
      higher_is_better: of the score.
      scores: those of the evaluations before a restart.
    """

    def __init__(self, patience: int, higher_is_better: bool, scores: Iterable[float] = ()):
        self._patience = patience
        self._sign = 1 if higher_is_better else -1
        self._best: float | None = None
        self._since_best = 0
        for score in scores:
            self.note(score)

    def note(self, score: float) -> None:
        """Takes the score of an evaluation; one that is not a number is no improvement."""
        is_better = self._best is None or self._sign * score > self._sign * self._best
        if is_better and not math.isnan(score):
            self._best, self._since_best = score, 0
        else:
            self._since_best += 1

    @property
    def exhausted(self) -> bool:
        """Whether the run should end."""
        return 0 < self._patience <= self._since_best
