"""The scalars of a run: ``metrics.jsonl``, one line a logged step, and the same in TensorBoard.

``metrics.jsonl`` is the source of truth::

    {"step": 100, "train/loss": 7.25, "train/mlm_loss": 6.5}
    {"step": 200, "train/loss": 6.5, "train/mlm_loss": 6.0, "validation/mlm_loss": 6.25}

Numbers are written in the shortest form that reads back as the same double, so two runs can be
compared bit for bit. JSON has no word for what is not finite; such a value is written as one of
the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` (as Protocol Buffers' JSON does), which
``float()`` and :func:`read_metrics` turn back into the number.

The TensorBoard events are derived: opening the log writes them anew from the lines that are kept.
They are written here, as records of TensorBoard's event messages, and not through a summary
writer: such a one writes from a thread of its own, which a full disk kills, and the run then waits
for it for ever. (tensorboardX is no choice: where PyTorch is installed it spends seconds importing
it.)
"""

import io
import json
import math
import numbers
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsFloat

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from bert_jax.errors import UserError
from bert_jax.storage import as_path
from bert_jax.training.atomic_file import explain_write_errors, write_atomically

Record = dict[str, int | float]
"""One step: ``{"step": 100, "train/loss": 7.25, ...}``; all values but ``step`` are scalars."""

METRICS = "metrics.jsonl"

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
    """Writes ``WORKDIR/metrics.jsonl`` and ``WORKDIR/tensorboard/``.

    The newest step is held back until a newer one comes, so that training and validation values of
    one step share a line; :meth:`flush` writes it without ending it. Call :meth:`flush` before a
    checkpoint is saved: a run that is killed then finds, on resuming, every line up to that step.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None = None,
        *,
        enabled: bool = True,
    ) -> None:
        """Opens the log, creating ``workdir`` where it is missing.

        Args:
          workdir: the run's working directory.
          resume_step: the step of the checkpoint that was restored. Lines past it are removed, for
            they will be written again; the line of that step itself can still be added to. ``None``
            or 0 means that nothing was restored: the log starts empty, whatever was there.
          enabled: False, as on every process but the first, reads what was kept and remembers what
            is written, but writes nothing: :meth:`last_record` answers the same on all processes.

        Raises:
          UserError: when the directory cannot be written or ``metrics.jsonl`` is not a metrics log.
        """
        self.path = Path(workdir) / METRICS
        self._enabled = enabled

        kept: list[Record] = []
        if resume_step and self.path.exists():
            kept = [record for record in read_metrics(self.path) if record["step"] <= resume_step]
        self.kept: tuple[Record, ...] = tuple(map(dict, kept))
        self._latest: dict[str, Record] = {}
        for record in kept:
            self._remember(record)
        is_open = bool(kept) and kept[-1]["step"] == resume_step
        self._pending: Record | None = kept.pop() if is_open else None
        self._last_written_step = int(kept[-1]["step"]) if kept else -1
        if not enabled:
            return

        lines = b"".join(map(_encode_line, kept))
        self._pending_offset = len(lines)  # where the newest step's line starts
        if self._pending is not None:
            lines += _encode_line(self._pending)
        tensorboard = Path(workdir) / "tensorboard"
        with explain_write_errors(workdir):
            tensorboard.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lines)
        self._event_path = _start_event_file(tensorboard, kept)

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Adds the values of a step; a value of the same step and name is replaced.

        Args:
          step: not older than that of any earlier call.
          values: scalars by name, ``group/name``: Python, NumPy or zero-dimensional JAX numbers.

        Raises:
          ValueError: when the step is older than one already written, or a value is named ``step``.
          UserError: when the disk is full.
        """
        newest = self._last_written_step if self._pending is None else int(self._pending["step"])
        if step < newest or step == self._last_written_step:
            raise ValueError(f"step {step} comes after step {newest} was written")
        if "step" in values:
            raise ValueError('"step" names the step itself and cannot be the name of a value')
        if self._pending is not None and self._pending["step"] != step:
            self._finish_pending()
        if self._pending is None:
            self._pending = {"step": int(step)}
        self._pending |= {name: _to_number(value) for name, value in values.items()}
        self._remember(self._pending)

    def flush(self) -> None:
        """Puts everything written so far on the disk; the newest step can still be added to.

        Raises:
          UserError: when the disk is full.
        """
        if self._pending is not None:
            self._write_line(self._pending)
        if self._enabled:
            # Only here, not for each line: a busy disk takes seconds for it. A line that was
            # written survives a killed process without it; this is for a power cut.
            with explain_write_errors(self.path), open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Writes the newest step and ends it. Closing twice is harmless.

        Raises:
          UserError: when the disk is full.
        """
        if self._pending is not None:
            self._finish_pending()
            self.flush()

    def last_record(self, prefix: str) -> Record | None:
        """The newest step that has a value whose name starts with ``prefix``, or ``None``.

        Args:
          prefix: such as ``"validation/"``.
        """
        records = [record for name, record in self._latest.items() if name.startswith(prefix)]
        newest = max(records, key=lambda record: record["step"], default=None)
        return None if newest is None else dict(newest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error the last values matter most: they tell at which step it came.
        self.close()

    def _remember(self, record: Record) -> None:
        for name in record.keys() - {"step"}:
            self._latest[name] = record

    def _write_line(self, record: Record) -> int:
        """Writes the newest step's line over what was flushed of it; returns where it ends."""
        if not self._enabled:
            return 0
        line = _encode_line(record)
        # Opened anew for each line, a few times a second at most: no handle to lose or to leak.
        with explain_write_errors(self.path), open(self.path, "r+b") as file:
            file.seek(self._pending_offset)
            file.write(line)
            file.truncate()
        return self._pending_offset + len(line)

    def _finish_pending(self) -> None:
        assert self._pending is not None
        record, self._pending_offset = self._pending, self._write_line(self._pending)
        self._pending = None
        self._last_written_step = int(record["step"])
        if self._enabled:
            with explain_write_errors(self._event_path), open(self._event_path, "ab") as file:
                file.write(_encode_events([record]))


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
    """Reads a ``metrics.jsonl``, whether its run has ended, is running or was killed.

    Args:
      path: the file.

    Returns:
      One record a line, in the file's order. A last line that was cut short is left out.

    Raises:
      UserError: when the file cannot be read or another line is not a JSON object with a step.
    """
    try:
        lines = as_path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_decode_line(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(
                f"{os.fspath(path)}, line {number} is not a line of a metrics log ({error}); "
                "restore the file, or delete that line"
            ) from error
    return records


def _to_number(value: SupportsFloat) -> int | float:
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _encode_line(record: Record) -> bytes:
    encodable = {
        name: value if math.isfinite(value) else _name_of_not_finite(value)
        for name, value in record.items()
    }
    return json.dumps(encodable, allow_nan=False).encode() + b"\n"


def _name_of_not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _decode_line(line: bytes) -> Record:
    """Reads one line; raises ``ValueError`` when it is not what ``_encode_line`` writes."""
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError('not an object with a whole number "step"')
    decoded = {}
    for name, value in record.items():
        number = _NOT_FINITE.get(value) if isinstance(value, str) else value
        if not isinstance(number, int | float):
            raise ValueError(f'"{name}" is not a number')
        decoded[name] = number
    return decoded


def _start_event_file(directory: Path, records: Sequence[Record]) -> Path:
    """Replaces the event files in ``directory`` by one that holds ``records``."""
    with explain_write_errors(directory):
        for stale in directory.glob("events.out.tfevents.*"):
            stale.unlink()
    # TensorBoard finds event files by the middle part of the name and orders them by the time. A
    # new name makes one that is watching begin again instead of reading on from its old position.
    path = directory / f"events.out.tfevents.{int(time.time())}.bert_jax"
    version = Event(wall_time=time.time(), file_version="brain.Event:2")
    write_atomically(path, _records([version]) + _encode_events(records))
    return path


def _encode_events(records: Iterable[Record]) -> bytes:
    """One event a step with all its scalars, as TensorBoard's single-precision values."""
    events = []
    for record in records:
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != "step"
        ]
        event = Event(
            wall_time=time.time(), step=int(record["step"]), summary=Summary(value=values)
        )
        events.append(event)
    return _records(events)


def _records(events: Iterable[Event]) -> bytes:
    """The events as an event file has them, each with its length and checksums."""
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in events:
        writer.write(event.SerializeToString())
    return stream.getvalue()
