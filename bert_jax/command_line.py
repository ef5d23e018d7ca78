"""What the entry points share: reading the command line, and ending with one clear sentence.

The grammar is that of ml_collections' ``config_flags``::

    python -m bert_jax.train --config FILE[:ARGUMENT] --workdir DIR [--config.KEY=VALUE ...]
"""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import absl.logging
from ml_collections import ConfigDict

from bert_jax.config_file import load_config, override_config
from bert_jax.errors import EXIT_USER_ERROR, FULL_DISK, Stopped, UserError
from bert_jax.training.preemption import EXIT_INTERRUPTED, EXIT_PREEMPTED
from bert_jax.training.process_group import ProcessGroup

EXIT_BROKEN_PIPE = 141
EXIT_FAULT = 1  # as Python has it
EXIT_TERMINATED = 128 + signal.SIGTERM  # as shells have it

_SECONDS_UNTIL_TOLD_AGAIN = 0.05
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)  # of a file that is named


def run(main: Callable[[], int | None], fail: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """Runs an entry point and exits with its code; a mistake of the user's costs one line.

    ``UserError``, a full or unwritable disk and a file's name that no disk takes end with
    ``error: ...`` on standard error and code 2, Ctrl-C with ``interrupted`` and code 130, and in
    silence ``terminated_as_exception`` with code 143 and standard output that nobody reads any more
    with code 141, as shells have it. Whatever else is raised is a fault of the program and keeps
    its traceback.

    Args:
      main: the program; returns its exit code, None for 0.
      fail: how to leave with the code of what ``main`` raised.

    Raises:
      SystemExit: always, but for what ``fail`` does.
    """
    # Orbax and TFDS warn of what is none of the user's business, and raise their errors besides
    # logging them, through absl and through asyncio.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        with _signals_told_again():
            sys.exit(main())
    except UserError as error:
        code = _fail(str(error))
    except BrokenPipeError:
        # What reads the output, such as ``head``, has read enough. Python would still flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_BROKEN_PIPE
    except OSError as error:
        unusable = error.errno in _UNUSABLE and error.filename is not None
        if error.errno in FULL_DISK or unusable:
            place = f"{error.filename} cannot be used: " if error.filename else ""
            code = _fail(f"{place}{error.strerror}")
        else:
            traceback.print_exc()
            code = EXIT_FAULT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except _Terminated:
        code = EXIT_TERMINATED
    except Stopped as stopped:
        print("stopped", file=sys.stderr)
        code = EXIT_INTERRUPTED if stopped.signal == signal.SIGINT else EXIT_PREEMPTED
    except Exception:
        traceback.print_exc()
        code = EXIT_FAULT
    fail(code)


class _Terminated(BaseException):
    """SIGTERM."""


@contextlib.contextmanager
def terminated_as_exception() -> Iterator[None]:
    """Makes an exception of SIGTERM, as Python does of Ctrl-C, so that nothing half-made stays.

    It is raised when Python has its turn, so not while XLA compiles: only programs that write for
    long are in need of it. Outside the main thread, where Python allows no handlers, nothing is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _signals_told_again() -> Iterator[None]:
    """Has no signal lost of those that are exceptions.

    Python raises them wherever it is, and where that is a callback, such as JAX's at a collection
    of garbage, discards them.
    """

    def tell_again(discarded: Any) -> None:
        number = again.get(discarded.exc_type)
        if number is None:
            report(discarded)
            return
        timer = threading.Timer(_SECONDS_UNTIL_TOLD_AGAIN, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    again = {KeyboardInterrupt: signal.SIGINT, _Terminated: signal.SIGTERM}
    report = sys.unraisablehook
    sys.unraisablehook = tell_again
    try:
        yield
    finally:
        sys.unraisablehook = report


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USER_ERROR


class ArgumentParser(argparse.ArgumentParser):
    """``argparse`` whose mistakes are ``UserError``s, with the nearest right flag named.

    Flags cannot be abbreviated: a script would break when a flag is added.
    """

    def __init__(self, **keywords: Any) -> None:
        """Takes the keywords of ``argparse.ArgumentParser``."""
        super().__init__(allow_abbrev=False, **keywords)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reads the arguments, none of which may be unknown; subcommands' parsers do so too.

        Raises:
          UserError: for an unknown flag, a missing one or a value of the wrong type.
        """
        arguments = sys.argv[1:] if args is None else list(args)
        # First of all: argparse would sooner say that the flag which was meant is missing. What
        # flags stand before a subcommand and what after it, only argparse itself can tell.
        if self._subparsers is None:
            self._refuse_unknown_flags(arguments)
        parsed, unknown = super().parse_known_args(arguments, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return parsed, unknown

    def _refuse_unknown_flags(self, arguments: Sequence[str]) -> None:
        for argument in arguments:
            flag = argument.split("=", 1)[0]
            if flag == "--":
                return
            if not flag.startswith("--") or flag in self._option_string_actions:
                continue
            if nearest := difflib.get_close_matches(flag, self._option_string_actions, n=1):
                raise UserError(f"unknown flag {flag}; did you mean {nearest[0]}?")
            self.error(f"unknown flag {flag}")

    def error(self, message: str) -> NoReturn:
        """Raises ``message`` as a ``UserError`` instead of printing the usage and exiting."""
        raise UserError(f"{message}; see {self.prog} --help")


@dataclasses.dataclass(frozen=True)
class ConfigFlags:
    """What ``--config``, ``--config.KEY`` and ``--workdir`` gave.

    Attributes:
      config: the recipe's config with the overrides applied, locked against unknown keys.
      workdir: the run's working directory, as it was typed.
      processes: who takes part in the run.
    """

    config: ConfigDict
    workdir: str
    processes: ProcessGroup


def parse_config_flags(
    argv: Sequence[str] | None = None, *, program: str = "python -m bert_jax.train"
) -> ConfigFlags:
    """Reads ``--config FILE[:ARGUMENT] --workdir DIR [--config.KEY=VALUE ...]``, and the processes.

    Args:
      argv: the arguments without the program's name; None reads those of the process.
      program: the name that ``--help`` and the messages show.

    Raises:
      UserError: for an unknown flag or key (the nearest right one is named), a value of the wrong
        type, or a config file that is missing or fails.
      SystemExit: after ``--help``.
    """
    parser = ArgumentParser(
        prog=program,
        usage="%(prog)s --config FILE[:ARGUMENT] --workdir DIR [--config.KEY=VALUE ...]",
        epilog="The config file's docstring tells its arguments; the file itself lists its keys.",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARGUMENT]", help="recipe, and its argument"
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="where the run keeps everything"
    )
    group = parser.add_argument_group(
        "many processes", "A TPU VM, SLURM, GKE and Open MPI tell the first three by themselves."
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 meets the others"
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    standard = ProcessGroup()
    group.add_argument(
        "--heartbeat_timeout",
        type=int,
        default=standard.heartbeat_timeout,
        metavar="SECONDS",
        help="silence after which a process counts as dead, and the run ends (%(default)s)",
    )
    group.add_argument(
        "--connection_timeout",
        type=int,
        default=standard.connection_timeout,
        metavar="SECONDS",
        help="how long the processes wait for each other at the start (%(default)s)",
    )
    rest, overrides = take_overrides(sys.argv[1:] if argv is None else argv)
    parsed = parser.parse_args(rest)
    processes = ProcessGroup(**{field: getattr(parsed, field) for field in ProcessGroup._fields})
    processes.check()
    config = load_config(parsed.config)
    for key, text in overrides:
        override_config(config, key, text)
    return ConfigFlags(config=config.lock(), workdir=parsed.workdir, processes=processes)


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Splits off ``--config.KEY=VALUE`` and ``--config.KEY VALUE``, in their order.

    Returns:
      The other arguments, and pairs of key and text.

    Raises:
      UserError: a key has no value.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    arguments = iter(argv)
    for argument in arguments:
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, flags=re.DOTALL)
        if match is None:
            rest.append(argument)
            continue
        key, text = match.groups()
        if text is None:
            text = next(arguments, None)
            if text is None or text.startswith("--"):
                raise UserError(f"--config.{key} has no value; write --config.{key}=VALUE")
        overrides.append((key, text))
    return rest, overrides
