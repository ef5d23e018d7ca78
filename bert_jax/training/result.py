"""What a finished run came to, for programs that compare runs."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.training.atomic_file import write_atomically

RESULT = "result.json"
_PREFIX = "validation/"


class Result(NamedTuple):
    """The evaluation that a run is judged by.

    Attributes:
      step: when it was made.
      selection: the metric that decides.
      higher_is_better: of that metric.
      values: the validation metrics by name; none where nothing was evaluated.
      identity: fingerprints of the data and the vocabulary; none of runs of older versions.
    """

    step: int
    selection: str
    higher_is_better: bool
    values: dict[str, float]
    identity: Mapping[str, Any] = {}


def find_result(
    metrics: Sequence[Mapping[str, float]],
    selection: str,
    higher_is_better: bool,
    *,
    first_step: int,
    best: bool,
) -> Result:
    """Finds the evaluation that a run is judged by.

    Args:
      metrics: the run's log, one mapping a step.
      selection: the metric that decides.
      higher_is_better: of that metric.
      first_step: of the run's last phase; earlier evaluations cannot be compared with its own.
      best: the best evaluation, the earliest of equals, where the run keeps that checkpoint;
        otherwise the last.
    """
    name, sign = f"{_PREFIX}{selection}", -1 if higher_is_better else 1
    records = [record for record in metrics if record["step"] >= first_step and name in record]
    finite = [record for record in records if math.isfinite(record[name])]
    chosen: Mapping[str, float] = {}
    if best and finite:
        chosen = min(finite, key=lambda record: sign * record[name])
    elif records:
        chosen = records[-1]
    values = {
        key.removeprefix(_PREFIX): value for key, value in chosen.items() if key.startswith(_PREFIX)
    }
    return Result(int(chosen.get("step", 0)), selection, higher_is_better, values)


def write_result(path: Path, result: Result) -> None:
    """Writes a result as JSON."""
    write_atomically(path, json.dumps(to_json(result), indent=2, allow_nan=False).encode() + b"\n")


def read_result(path: Path) -> Result:
    """Reads what ``write_result`` wrote."""
    return from_json(json.loads(path.read_text(encoding="utf-8")))


def to_json(result: Result) -> dict[str, Any]:
    """A result as plain JSON."""
    return result._asdict() | {"values": null_if_undefined(result.values)}


def from_json(fields: Mapping[str, Any]) -> Result:
    """The result of which ``to_json`` made these fields."""
    values = {name: math.nan if v is None else v for name, v in fields["values"].items()}
    return Result(**{**fields, "values": values})


def null_if_undefined(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Scores for JSON, which has no number for one that the rows do not define."""
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in values.items()
    }
