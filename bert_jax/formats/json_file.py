"""JSON files that others wrote."""

import json
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the directory") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no JSON ({error}); copy it again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no JSON object; copy it again")
    return fields


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
