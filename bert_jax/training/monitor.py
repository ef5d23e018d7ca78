"""Follows the steps of a run one step behind, so that the device never waits for the host."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from bert_jax.errors import UserError
from bert_jax.training.metrics import Ratio, Sums, fetch
from bert_jax.training.metrics_log import MetricsLog
from bert_jax.training.progress import Progress
from bert_jax.training.speed import SpeedMeter

# The name under which a task's sums count real tokens; it gives the speed and is no metric.
TOKENS = "tokens"


class Monitor:
    """Checks, logs and shows the sums of each step while the next one runs.

    Args:
      log: where values go.
      progress: where they are shown.
      meter: measures the speed.
      describe: turns a step's number and sums into the values to log, ``loss`` among them.
      log_every_steps: how often to log.
      saved_steps: the steps of complete checkpoints, asked for when a run fails.
    """

    def __init__(
        self,
        log: MetricsLog,
        progress: Progress,
        meter: SpeedMeter,
        describe: Callable[[int, Mapping[str, Ratio]], dict[str, float]],
        log_every_steps: int,
        saved_steps: Callable[[], Sequence[int]],
    ):
        self._log = log
        self._progress = progress
        self._meter = meter
        self._describe = describe
        self._log_every_steps = log_every_steps
        self._saved_steps = saved_steps
        self._running: tuple[int, Sums, float | None] | None = None

    def follow(self, step: int, sums: Sums, flops_per_token: float | None) -> None:
        """Takes the sums of the update that was just dispatched, and handles the one before.

        Args:
          step: the number of updates, this one included.
          sums: its sums, still being computed.
          flops_per_token: for the share of the hardware's peak.

        Raises:
          UserError: the loss or the gradient of the update before is not finite.
        """
        before, self._running = self._running, (step, sums, flops_per_token)
        if before is not None:
            self._handle(*before)

    def catch_up(self) -> None:
        """Waits for the last update and handles it.

        Raises:
          UserError: its loss or its gradient is not finite.
        """
        before, self._running = self._running, None
        if before is not None:
            self._handle(*before)

    def _handle(self, step: int, sums: Sums, flops_per_token: float | None) -> None:
        fetched = fetch(sums)
        tokens = fetched.pop(TOKENS, None)
        if tokens is not None:
            self._meter.count(float(tokens.total), flops_per_token)
        broken = [name for name, ratio in fetched.items() if not math.isfinite(ratio.total)]
        if step % self._log_every_steps and not broken:
            self._progress.update(step)
            return
        values = self._describe(step, fetched) | self._meter.read()
        self._log.write(step, values)
        self._progress.update(step, values)
        if broken:
            self._stop(step, broken[0])

    def _stop(self, step: int, name: str) -> NoReturn:
        # The update was computed on the parameters of the step before, so those are bad already.
        saved = self._saved_steps()
        good = max((s for s in saved if s < step - 1), default=None)
        bad = [str(s) for s in saved if s >= step - 1]
        advice = "lower --config.optimizer.learning_rate or check the data"
        if bad:
            advice = f"remove {', '.join(bad)} from its checkpoints, and {advice}"
        raise UserError(
            f"{name} is not finite at step {step:,}; the last good checkpoint is "
            f"{'none' if good is None else f'that of step {good:,}'}: {advice}"
        )
