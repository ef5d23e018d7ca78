"""SIGTERM and Ctrl-C as requests that the loop answers when its state is whole."""

import signal
import threading
from types import FrameType
from typing import ClassVar, Self

# A run that was told to stop has saved and can go on; no other ending of a run has this code
# (EX_TEMPFAIL of sysexits.h: try again later).
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Preemption:
    """While entered, the first SIGTERM or Ctrl-C is noted; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python allows no signal handlers, nothing is caught.
    """

    caught: ClassVar[tuple[int, ...]] = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether the run shall save and stop."""
        return self._signal is not None

    def stops_here(self) -> bool:
        """Whether the run shall save and stop at this point of the program."""
        return self.requested

    @property
    def exit_code(self) -> int:
        """The exit code that tells a launcher why the run stopped."""
        return EXIT_INTERRUPTED if self._signal == signal.SIGINT else EXIT_PREEMPTED

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.caught:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned
        self._previous.clear()
