"""Ends a run whose validation score no longer gets better."""

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
        if self._best is None or self._sign * score > self._sign * self._best:
            self._best, self._since_best = score, 0
        else:
            self._since_best += 1

    @property
    def exhausted(self) -> bool:
        """Whether the run should end."""
        return 0 < self._patience <= self._since_best
