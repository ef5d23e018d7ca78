"""Files of predictions: JSON lines, GLUE's submission (.tsv) and SQuAD's (.json)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.training.atomic_file import write_atomically

SUFFIXES = (".jsonl", ".tsv", ".json")


def check_name(path: str | Path) -> None:
    """Says before the work whether its result could be written.

    Raises:
      UserError: the name has none of the endings or is a directory's, or the directory that it is
        in does not exist or cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise UserError(f"predictions cannot be written to {path}; end it in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"the directory {path.parent} does not exist; make it first")
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the directory {path.parent} cannot be written; name another")


def write_predictions(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the predictions of a split, whole or not at all.

    Args:
      path: its ending decides: ``.jsonl`` has a line for each row, with all that is said of it;
        ``.tsv`` GLUE's submission, a header and lines of ``index`` and ``prediction``, by rising
        number; ``.json`` one object from each row's ``id`` (or index) to its prediction, as
        SQuAD's.
      rows: objects with ``index`` and ``prediction``, plain JSON.

    Raises:
      UserError: see ``check_name``; the file cannot be written; or two rows have one index, which
        GLUE's and SQuAD's formats cannot tell apart.
    """
    check_name(path)
    path = Path(path).expanduser()
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif path.suffix == ".tsv":
        answers = _by_key(path, [(row["index"], row["prediction"]) for row in rows])
        keys = sorted(answers) if all(isinstance(key, int) for key in answers) else list(answers)
        lines = [f"{_cell(key)}\t{_cell(answers[key])}" for key in keys]
        text = "\n".join(["index\tprediction", *lines]) + "\n"
    else:
        answers = _by_key(path, [(row.get("id", row["index"]), row["prediction"]) for row in rows])
        text = json.dumps(answers, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def _by_key(path: Path, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    answers: dict[Any, Any] = {}
    for key, prediction in pairs:
        if not isinstance(key, str | int):
            raise UserError(
                f"a row has the index {key!r}, which {path} has no form for; write a .jsonl, or "
                "leave data.index empty"
            )
        if key in answers:
            raise UserError(
                f"two rows have the index {key!r}, so {path} could not tell them apart; write one "
                "split at a time (evaluate --data), or a .jsonl"
            )
        answers[key] = prediction
    return answers


def _cell(value: Any) -> str:
    """A value that keeps its line and its column."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split())
