"""What the entry points share: reading the command line, and ending with one clear sentence.

The grammar is that of ml_collections' ``config_flags``::

    python -m bert_jax.train --config FILE[:ARGUMENT] --workdir DIR [--config.KEY=VALUE ...]

It is read here because ``config_flags`` loads the file by ``SourceFileLoader.load_module``, which
Python deprecates, keeps its types in a global table, and answers mistakes with a traceback.
"""

import argparse
import ast
import dataclasses
import difflib
import errno
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from types import ModuleType
from typing import Any, NoReturn

from absl import logging
from ml_collections import ConfigDict

from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.training.preemption import EXIT_INTERRUPTED
from bert_jax.training.process_group import ProcessGroup

EXIT_BROKEN_PIPE = 141
EXIT_FAULT = 1  # as Python has it

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # writing to an open file names no file
_FORBIDDEN = (errno.EACCES, errno.EPERM)


def run(main: Callable[[], int | None], fail: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """Runs an entry point and exits with its code; a mistake of the user's costs one line.

    ``UserError`` and a full or unwritable disk end with ``error: ...`` on standard error and code
    2, Ctrl-C with ``interrupted`` and code 130, and standard output that nobody reads any more in
    silence with code 141, as shells have it. Whatever else is raised is a fault of the program and
    keeps its traceback.

    Args:
      main: the program; returns its exit code, None for 0.
      fail: how to leave with the code of what ``main`` raised.

    Raises:
      SystemExit: always, but for what ``fail`` does.
    """
    # Orbax and TFDS warn through absl of what is none of the user's business.
    logging.set_verbosity(logging.ERROR)
    try:
        sys.exit(main())
    except UserError as error:
        code = _fail(str(error))
    except BrokenPipeError:
        # What reads the output, such as ``head``, has read enough. Python would still flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_BROKEN_PIPE
    except OSError as error:
        forbidden = error.errno in _FORBIDDEN and error.filename is not None
        if error.errno in _FULL_DISK or forbidden:
            place = f"{error.filename} cannot be used: " if error.filename else ""
            code = _fail(f"{place}{error.strerror}")
        else:
            traceback.print_exc()
            code = EXIT_FAULT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        code = EXIT_FAULT
    fail(code)


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


def load_config(specification: str) -> ConfigDict:
    """Loads a config from a Python file that defines ``get_config()`` or ``get_config(argument)``.

    Args:
      specification: ``FILE`` or ``FILE:ARGUMENT``.

    Returns:
      What ``get_config`` returned, not locked.

    Raises:
      UserError: when the file is missing, is not such a file, or fails.
    """
    path, *arguments = specification.split(":", 1)
    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} does not exist; --config takes FILE[:ARGUMENT]")
    spec = importlib.util.spec_from_file_location("bert_jax_config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path!r} is not Python; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = _find_get_config(module, path, arguments)(*arguments)
    except UserError:
        raise
    except Exception as error:  # A config file is the user's code and may raise anything.
        raise UserError(_describe_failure(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() in {path!r} returned {type(config).__name__}; "
            "it must return an ml_collections.ConfigDict"
        )
    return config


def _find_get_config(
    module: ModuleType, path: str, arguments: Sequence[str]
) -> Callable[..., object]:
    function: Callable[..., object] | None = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"config file {path!r} has no function get_config; add one")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        wrong = f"takes no argument; write --config {path}"
        missing = f"needs an argument; write --config {path}:ARGUMENT"
        raise UserError(f"config file {path!r} {wrong if arguments else missing}") from None
    return function


def _describe_failure(path: str, error: Exception) -> str:
    """``FILE, line 12: KeyError: 'huge'``, with the innermost line that is in the config file."""
    if isinstance(error, SyntaxError):
        place = os.path.relpath(error.filename) if error.filename else path
        return f"{place}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    own = os.path.abspath(path)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == own
    ]
    place = f"{path}, line {lines[-1]}" if lines else path
    return f"{place}: {type(error).__name__}: {error}"


def override_config(config: ConfigDict, key: str, text: str) -> None:
    """Sets one key of a config from text, as ``--config.KEY=TEXT`` does.

    The key's present value decides how the text is read. Whole numbers may be written as ``1e5``
    and ``100_000``; tuples and lists as in Python; a key that is None takes any Python literal, or
    else the text itself.

    Args:
      config: changed in place.
      key: dotted path to an existing key, such as ``mesh.data``.
      text: the value.

    Raises:
      UserError: when there is no such key, or the text is not of its type.
    """
    *group_names, name = key.split(".")
    group: object = config
    for group_name in group_names:
        group = group.get(group_name) if isinstance(group, ConfigDict) else None
    if not isinstance(group, ConfigDict) or name not in group:
        raise UserError(f"unknown config key --config.{key}; {_suggest_key(config, key)}")
    value = group[name]
    if isinstance(value, ConfigDict):
        leaves = ", ".join(f"--config.{key}.{leaf}" for leaf in _leaves(value))
        raise UserError(f"--config.{key} is a group of keys; set one of them: {leaves}")
    try:
        group[name] = _parse_value(text, value, group.get_type(name))
    except ValueError as error:
        raise UserError(f"--config.{key} takes {error}, not {text!r}") from None


def override_from_argument(config: ConfigDict, argument: str) -> None:
    """Sets keys from a config file's argument: ``KEY=VALUE[,KEY=VALUE...]``, or nothing.

    Raises:
      UserError: a part is no such setting, or cannot be set.
    """
    for setting in filter(None, argument.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} in the config's argument is no KEY=VALUE")
        override_config(config, key, value)


def _leaves(config: ConfigDict) -> list[str]:
    """The dotted paths of all keys that hold a value."""
    paths = []
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            paths += [f"{name}.{path}" for path in _leaves(value)]
        else:
            paths.append(name)
    return paths


def _suggest_key(config: ConfigDict, key: str) -> str:
    paths = _leaves(config)
    last = key.rsplit(".", 1)[-1]
    path_of_last = {path.rsplit(".", 1)[-1]: path for path in paths}
    # The right name in the wrong group is a nearer miss than any likeness of the whole path.
    if last in path_of_last:
        return f"did you mean --config.{path_of_last[last]}?"
    if nearest := difflib.get_close_matches(key, paths, n=1):
        return f"did you mean --config.{nearest[0]}?"
    if nearest := difflib.get_close_matches(last, path_of_last, n=1):
        return f"did you mean --config.{path_of_last[nearest[0]]}?"
    return f"the keys are {', '.join(paths)}"


def _parse_value(text: str, value: object, value_type: type) -> object:
    """Reads ``text`` as a ``value_type``; raises ``ValueError`` that says what was expected."""
    if value is None and text.lower() == "none":
        return None
    if value_type is bool:
        return _parse_bool(text)
    if value_type is int:
        return _parse_int(text)
    if value_type is float:
        return _parse_float(text)
    if value_type is str:
        return text
    if value_type in (tuple, list):
        return _parse_sequence(text, value, value_type)
    if value is None:
        return _parse_literal(text, otherwise=text)
    raise ValueError(f"no value from the command line, being a {value_type.__name__}")


def _parse_bool(text: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise ValueError("true or false")
    return words[text.lower()]


def _parse_int(text: str) -> int:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    # The bound keeps 1e999999 from becoming a number of a million digits.
    if not number.is_finite() or number != number.to_integral_value() or number.adjusted() > 18:
        raise ValueError("a whole number such as 1000, 1_000 or 1e3")
    return int(number)


def _parse_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number such as 0.1 or 1e-4") from None


def _parse_sequence(text: str, value: object, value_type: type) -> object:
    parsed = _parse_literal(text, otherwise=None)
    if not isinstance(parsed, tuple | list):
        raise ValueError(f"a {value_type.__name__} such as {value or '(1, 2)'!r}")
    return value_type(parsed)


def _parse_literal(text: str, otherwise: object) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return otherwise
