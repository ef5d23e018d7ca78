"""The package's programs, started from a process that has imported already what they import.

A test suite starts them a hundred times, and importing is seconds of each. Here a server (of
``multiprocessing``) imports once and forks for each program, which then runs as ``python -m`` runs
it: as ``__main__``, with its own arguments, output, signals and exit code, and with devices of its
own, since nothing in the server touches a device.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from unittest import mock

# What the programs import, but none of the programs, which runs as __main__.
_IMPORTED = (
    "bert_jax.data.corpus",
    "bert_jax.data.preparation",
    "bert_jax.pretrained",
    "bert_jax.tasks.program",
    "bert_jax.training.checkpoints",
    "bert_jax.training.metrics_log",
    "bert_jax.training.processes",
    "bert_jax.training.report",
    "flax.linen",
    "grain",
    "matplotlib.figure",
    "matplotlib.projections",
    "optax",
    "tensorflow_datasets",
)
_context = multiprocessing.get_context("forkserver")


def start_server(environment: Mapping[str, str]) -> None:
    """Starts the server, unless it runs; programs have its environment and working directory."""
    _context.set_forkserver_preload(list(_IMPORTED))
    with mock.patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()


class WarmProgram:
    """A running program; to its tests it is a ``subprocess.Popen`` with text for output."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        separate_errors: bool = False,
    ) -> None:
        """Starts ``python -m MODULE ARGUMENTS``.

        Args:
          module: its full name.
          arguments: those of the command line.
          environment: variables beside the server's.
          separate_errors: whether standard error is a stream of its own.
        """
        output, write_output = _context.Pipe(duplex=False)
        errors, write_errors = _context.Pipe(duplex=False) if separate_errors else (None, None)
        self._process = _context.Process(
            target=_run, args=(module, arguments, environment, write_output, write_errors)
        )
        self._process.start()
        self.stdout = _reader(output, write_output)
        self.stderr = _reader(errors, write_errors) if errors is not None else None

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the program runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the program has ended."""
        if self.returncode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; returns the exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """Everything that is written from now on, when all is written."""
        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        with ThreadPoolExecutor(len(streams)) as pool:
            reads = [pool.submit(stream.read) for stream in streams]
            try:
                texts = [read.result(timeout) for read in reads]
            except TimeoutError:
                self.kill()
                raise
        self.wait(timeout)
        for stream in streams:
            stream.close()
        return texts[0], texts[1] if len(texts) > 1 else None

    def __enter__(self) -> "WarmProgram":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.wait()


def _reader(end: Connection, other: Connection):
    """The readable end of a pipe as text; the other end is the program's alone."""
    other.close()
    stream = os.fdopen(os.dup(end.fileno()), encoding="utf-8")
    end.close()
    return stream


def _run(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: Connection,
    errors: Connection | None,
) -> None:
    os.dup2(output.fileno(), 1)
    os.dup2((errors or output).fileno(), 2)
    for stream in filter(None, (output, errors)):
        stream.close()
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # A process of multiprocessing leaves without.
        atexit._run_exitfuncs()
        sys.stdout.flush()
