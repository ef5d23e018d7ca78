"""Beam on this machine: a runner with worker processes that die and are ended without a hang.

Left to itself, Beam waits for ever when a worker was killed, and when it is interrupted it waits
until the workers have done all that they were given.
"""

import contextlib
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from bert_jax.errors import UserError

# Beam's threads for a worker; they end by an exception when it does.
_THREADS_OF_WORKERS = ("run_worker", "beam_control_read", "read_grpc_client_inputs")
_SECONDS_TO_END = 5.0
_WORKER_DIED = signal.SIGUSR1


@contextlib.contextmanager
def direct_runner(workers: int) -> Iterator[Any]:
    """A Beam runner for one pipeline.

    Args:
      workers: the number of worker processes; with 0 the work is done in this one.

    Yields:
      The runner. SIGINT and SIGTERM end the workers before they do what they did.

    Raises:
      UserError: a worker process died.
    """
    # Beam's own DirectRunner first looks for Prism, a program that it fetches, whose workers are
    # threads of this process.
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    if not workers:
        yield FnApiRunner()
        return
    with tempfile.TemporaryDirectory() as processes, _ending_workers(Path(processes)):
        # Beam has a shell start it; without exec, that would be what is waited for.
        command = ["exec", sys.executable, "-m", "bert_jax.data.beam_worker", processes]
        yield FnApiRunner(SubprocessSDKEnvironment.from_command_string(shlex.join(command)))


@contextlib.contextmanager
def _ending_workers(processes: Path) -> Iterator[None]:
    """``processes`` has a file for each worker, named by its process number."""
    died = False
    cause: BaseException | None = None
    thread = threading.get_ident()
    if thread != threading.main_thread().ident:  # which alone can have signals handled
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal died, cause
        died = True
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # of what is no news then
        for process in processes.iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        try:
            if number == _WORKER_DIED:
                raise UserError(
                    "A worker process was killed, as happens when memory runs out; give fewer "
                    "--workers"
                )
            handler = previous[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)
            else:
                raise SystemExit(128 + number)
        except BaseException as error:
            cause = error
            raise

    def on_exception_in_thread(exception: Any) -> None:
        nonlocal died
        if exception.thread is None or exception.thread.name not in _THREADS_OF_WORKERS:
            previous_hook(exception)
        elif not died:
            died = True
            # A real signal, for it must wake the thread.
            signal.pthread_kill(thread, _WORKER_DIED)

    previous_hook = threading.excepthook
    previous = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGINT, signal.SIGTERM, _WORKER_DIED)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    threading.excepthook = on_exception_in_thread
    try:
        yield
    except BaseException:
        if cause is not None:  # Beam fails at closing what is no longer there
            raise cause from None
        raise
    finally:
        died = True
        if cause is not None:
            for running in threading.enumerate():  # what they raise is no news
                if running.name in _THREADS_OF_WORKERS:
                    running.join(_SECONDS_TO_END)
        threading.excepthook = previous_hook
        for number, handler in previous.items():
            signal.signal(number, handler)
