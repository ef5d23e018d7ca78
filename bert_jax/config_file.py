"""Configs: Python files that make one, and settings that are laid over it as text.

ml_collections' ``config_flags`` loads the file by ``SourceFileLoader.load_module``, which Python
deprecates, keeps its types in a global table, and answers mistakes with a traceback.
"""

import ast
import difflib
import importlib.util
import inspect
import json
import os
import re
import traceback
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from bert_jax.errors import UserError

# Those that are not inside brackets.
_COMMA = re.compile(r",(?![^(\[]*[)\]])")


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


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as it is read back from JSON, which makes lists of its tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return plain


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
    for setting in filter(None, split_at_commas(argument)):
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} in the config's argument is no KEY=VALUE")
        override_config(config, key, value)


def split_at_commas(text: str) -> list[str]:
    """The values in a text, of which one may be a tuple or list with commas of its own."""
    return _COMMA.split(text)


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
        return _parse_any(text)
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


def _parse_any(text: str) -> object:
    parsed = _parse_literal(text, otherwise=text)
    if isinstance(parsed, float) and parsed.is_integer() and "." not in text:
        return int(parsed)  # 1e5, as where a whole number stands already
    is_value = isinstance(parsed, bool | int | float | str | tuple | list)
    return parsed if is_value else text


def _parse_literal(text: str, otherwise: object) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return otherwise
