"""Ends a run whose validation score no longer gets better."""

import math
from collections.abc import Iterable


class EarlyStopping:
    """Counts evaluations without improvement.

    Scores of two phases are of other examples, so each phase is counted for itself.

    Args:
      patience: evaluations without a better score after which to stop; 0 never stops.
      higher_is_better: of the score.
      past: phases and scores of the evaluations before a restart.
    """

    def __init__(
        self, patience: int, higher_is_better: bool, past: Iterable[tuple[int, float]] = ()
    ):
        self._patience = patience
        self._sign = 1 if higher_is_better else -1
        self._phase: int | None = None
        self._best: float | None = None
        self._since_best = 0
        for phase, score in past:
            self.note(phase, score)

    def note(self, phase: int, score: float) -> None:
        """Takes the score of an evaluation; one that is not a number is no improvement."""
        if phase != self._phase:
            self._phase, self._best, self._since_best = phase, None, 0
        is_better = self._best is None or self._sign * score > self._sign * self._best
        if is_better and not math.isnan(score):
            self._best, self._since_best = score, 0
        else:
            self._since_best += 1

    @property
    def exhausted(self) -> bool:
        """Whether the run should end."""
        return 0 < self._patience <= self._since_best
