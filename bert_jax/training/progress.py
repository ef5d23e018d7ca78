"""What a run shows while it trains: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

_SHOWN: dict[str, Callable[[float], str]] = {
    "train/loss": lambda value: f"loss {value:.4f}",
    "speed/tokens_per_second": lambda value: f"{_abbreviate(value)} tokens/s",
    "speed/mfu": lambda value: f"MFU {value:.1%}",
    "speed/data_wait": lambda value: f"{value:.0%} waiting for data",
}
"""The metrics that are shown, and how; ``speed/mfu`` and ``speed/data_wait`` are shares of 1."""


class _Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs alone
    # No watching thread: the loop moves the bar itself, and worker processes may be forked.
    monitor_interval = 0


_Item = TypeVar("_Item")
_SECONDS_BETWEEN_LINES = 30.0


def follow(
    items: Iterable[_Item], total: int | None, name: str, stream: TextIO | None = None
) -> Iterator[_Item]:
    """Gives items on and shows how many there were: by a bar on a terminal, else by lines.

    Args:
      items: of any number.
      total: how many there will be; None if that is not known.
      name: what they are, in the plural.
      stream: where to show it; standard error by default.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        yield from _Bar(
            items, total=total, unit=f" {name}", file=stream, dynamic_ncols=True, leave=False
        )
        return
    shown = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if (now := time.monotonic()) - shown >= _SECONDS_BETWEEN_LINES:
            shown = now
            of_all = "" if total is None else f"/{total:,} ({number / total:.0%})"
            print(f"{number:,}{of_all} {name}", file=stream, flush=True)


class Progress:
    """Shows how far a run is, what it reaches and how long it will still take.

    On a terminal that is one bar; elsewhere one plain line for each call with values, so that a log
    file stays readable. Everything goes to ``stream``, standard error by default.
    """

    def __init__(
        self,
        total_steps: int,
        initial_step: int = 0,
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        """Starts at ``initial_step``, the step that was restored.

        Args:
          total_steps: the step at which the run ends.
          initial_step: the step at which it starts.
          enabled: False, as on every process but the first, shows nothing at all.
          stream: where to show it.
        """
        self._total_steps = total_steps
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._first_update: tuple[int, float] | None = None
        self._bar: _Bar | None = None
        if enabled and self._stream.isatty():
            self._bar = _Bar(
                total=total_steps,
                initial=initial_step,
                file=self._stream,
                dynamic_ncols=True,
                # Nearly the average: evaluations and saves belong to the time that is left.
                smoothing=0.02,
                bar_format="{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} "
                "[{elapsed}<{remaining}]{postfix}",
            )

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Moves to ``step``.

        Args:
          step: the number of steps done.
          values: the step's metrics by their names in ``metrics.jsonl``; those worth showing are
            picked out. Without values a bar moves on and keeps its text, and no line is printed.
        """
        if not self._enabled:
            return
        now = time.perf_counter()
        # Counted from the end of the first step, which is mostly compilation.
        if self._first_update is None:
            self._first_update = (step, now)
        shown = [show(values[name]) for name, show in _SHOWN.items() if values and name in values]
        if self._bar is not None:
            if shown:
                self._bar.set_postfix_str(", ".join(shown), refresh=False)
            self._bar.update(step - self._bar.n)
        elif values:
            place = f"step {step:,}/{self._total_steps:,} ({step / self._total_steps:.0%})"
            self._print(", ".join([place, *shown, *self._time_left(step, now)]))

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def close(self) -> None:
        """Leaves the bar as it is and ends its line. Closing twice is harmless."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _time_left(self, step: int, now: float) -> list[str]:
        assert self._first_update is not None
        first_step, first_time = self._first_update
        if step == first_step:
            return []
        seconds = (now - first_time) / (step - first_step) * (self._total_steps - step)
        return [f"{tqdm.format_interval(seconds)} left"]


def _abbreviate(number: float) -> str:
    """Three digits and a thousands suffix: 950 -> "950", 12345 -> "12.3k"."""
    return tqdm.format_sizeof(number) if abs(number) >= 1000 else f"{number:.0f}"
