import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bert_jax.errors import UserError
from bert_jax.training import metrics_log
from bert_jax.training.metrics_log import MetricsLog, read_metrics


def _lines(workdir: Path) -> list[str]:
    return (workdir / "metrics.jsonl").read_text().splitlines()


def _steps(workdir: Path) -> list[int]:
    return [int(record["step"]) for record in read_metrics(workdir / "metrics.jsonl")]


def _write_steps(workdir: Path, *steps: int) -> None:
    with MetricsLog(workdir) as log:
        for step in steps:
            log.write(step, {"train/loss": 1.0 / step})


def _tensorboard(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_values_of_one_step_share_a_line(tmp_path):
    with MetricsLog(tmp_path / "new" / "run") as log:
        log.write(10, {"train/loss": 2.0})
        log.write(10, {"validation/loss": 3.0})
        log.write(20, {"train/loss": 1.5})
    assert _lines(tmp_path / "new" / "run") == [
        '{"step": 10, "train/loss": 2.0, "validation/loss": 3.0}',
        '{"step": 20, "train/loss": 1.5}',
    ]


def test_a_flushed_step_can_still_be_added_to(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(10, {"train/loss": 2.0})
    assert _lines(tmp_path) == []
    log.flush()
    assert _lines(tmp_path) == ['{"step": 10, "train/loss": 2.0}']
    # Replaced by something shorter: nothing of the longer line may stay.
    log.write(10, {"train/loss": 2})
    log.flush()
    assert _lines(tmp_path) == ['{"step": 10, "train/loss": 2}']
    log.close()
    log.close()
    assert _lines(tmp_path) == ['{"step": 10, "train/loss": 2}']


@pytest.mark.parametrize("step", [9, 5, 10])
def test_an_older_step_is_refused(tmp_path, step):
    with MetricsLog(tmp_path) as log:
        log.write(10, {"train/loss": 2.0})
        log.write(11, {"train/loss": 2.0})
        with pytest.raises(ValueError, match=f"step {step} comes after step 11"):
            log.write(step, {"train/loss": 1.0})


def test_a_value_cannot_be_called_step(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match="names the step"):
        log.write(1, {"step": 2})


def test_numbers_read_back_bit_for_bit(tmp_path):
    values = {
        "third": 1 / 3,
        "tiny": 5e-324,
        "single": np.float32(0.1),
        "count": np.int64(2**60 + 1),
        "negative_zero": -0.0,
    }
    with MetricsLog(tmp_path) as log:
        log.write(1, values)
    (record,) = read_metrics(log.path)
    for name, value in values.items():
        assert record[name] == value and math.copysign(1, record[name]) == math.copysign(1, value)
    assert isinstance(record["count"], int)


def test_what_is_not_finite_stays_valid_json_and_reads_back(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(_lines(tmp_path)[0], parse_constant=refuse) == {
        "step": 1,
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
    }
    (record,) = read_metrics(log.path)
    assert math.isnan(record["a"]) and record["b"] == math.inf and record["c"] == -math.inf


@pytest.mark.parametrize("resume_step", [None, 0])
def test_a_new_run_starts_empty(tmp_path, resume_step):
    _write_steps(tmp_path, 1, 2)
    with MetricsLog(tmp_path, resume_step=resume_step) as log:
        assert log.last_record("train/") is None
    assert _lines(tmp_path) == []


def test_resuming_removes_what_will_be_written_again(tmp_path):
    _write_steps(tmp_path, 10, 20, 30, 40)
    with MetricsLog(tmp_path, resume_step=25) as log:
        assert _steps(tmp_path) == [10, 20]
        log.write(30, {"train/loss": 5.0})
    assert _steps(tmp_path) == [10, 20, 30]
    assert read_metrics(log.path)[-1] == {"step": 30, "train/loss": 5.0}


def test_the_line_of_the_restored_step_is_added_to(tmp_path):
    _write_steps(tmp_path, 10, 20, 30)
    with MetricsLog(tmp_path, resume_step=20) as log:
        assert _steps(tmp_path) == [10, 20]  # On the disk already, should the run die again.
        assert [record["step"] for record in log.kept] == [10, 20]
        log.write(20, {"validation/loss": 0.5})
    assert read_metrics(log.path) == [
        {"step": 10, "train/loss": 0.1},
        {"step": 20, "train/loss": 0.05, "validation/loss": 0.5},
    ]


@pytest.mark.parametrize("cut", range(1, len('{"step": 30, "train/loss": 0.5}\n')))
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    _write_steps(tmp_path, 10, 20)
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 30, "train/loss": 0.5}\n'
    path.write_bytes(path.read_bytes() + whole[:cut])
    expected = [10, 20] if cut < len(whole) - 1 else [10, 20, 30]
    assert _steps(tmp_path) == expected
    MetricsLog(tmp_path, resume_step=30).close()
    assert _steps(tmp_path) == expected
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("line", ["{}", "[1]", '{"step": 1.5}', '{"step": 1, "a": "high"}', "\0\0"])
def test_another_bad_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match="metrics.jsonl, line 2 is not a line of a metrics log"):
        MetricsLog(tmp_path, resume_step=3)
    assert path.read_text().endswith('{"step": 3}\n')


def test_a_missing_log_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"absent.jsonl cannot be read: No such file"):
        read_metrics(tmp_path / "absent.jsonl")


def test_last_record_is_the_newest_with_such_a_value(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(10, {"validation/loss": 1.0, "train/loss": 2.0})
        log.write(20, {"validation/accuracy": 0.5})
        log.write(30, {"train/loss": 1.0})
        assert log.last_record("validation/") == {"step": 20, "validation/accuracy": 0.5}
        assert log.last_record("validation/loss")["step"] == 10
        assert log.last_record("train/")["step"] == 30
        assert log.last_record("test/") is None
    with MetricsLog(tmp_path, resume_step=20) as log:
        assert log.last_record("validation/")["step"] == 20
        assert log.last_record("train/")["step"] == 10


def test_a_process_that_writes_nothing_answers_the_same(tmp_path):
    _write_steps(tmp_path, 10, 20, 30)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with MetricsLog(tmp_path, resume_step=20, enabled=False) as log:
        assert log.last_record("train/")["step"] == 20
        log.write(20, {"validation/loss": 1.0})
        log.write(30, {"validation/loss": 0.5})
        log.flush()
        assert log.last_record("validation/") == {"step": 30, "validation/loss": 0.5}
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    with MetricsLog(tmp_path / "absent", enabled=False) as log:
        log.write(1, {"train/loss": 1.0})
    assert not (tmp_path / "absent").exists()


def test_tensorboard_holds_each_step_once(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(10, {"train/loss": 2.0})
        log.flush()
        log.write(10, {"validation/loss": 3.0})
        log.write(20, {"train/loss": 1.0})
        log.write(30, {"train/loss": 0.5})
    with MetricsLog(tmp_path, resume_step=20) as log:
        log.write(20, {"validation/loss": 2.5})
        log.write(30, {"train/loss": 0.25})
    assert _tensorboard(tmp_path) == {
        "train/loss": [(10, 2.0), (20, 1.0), (30, 0.25)],
        "validation/loss": [(10, 3.0), (20, 2.5)],
    }


def test_tensorboard_takes_what_is_not_finite(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"a": math.inf, "b": math.nan, "c": 1e300})
    scalars = _tensorboard(tmp_path)
    assert scalars["a"] == [(1, math.inf)] and scalars["c"] == [(1, math.inf)]
    assert math.isnan(scalars["b"][0][1])


def test_only_its_own_event_files_are_removed(tmp_path):
    _write_steps(tmp_path, 1)
    other = tmp_path / "tensorboard" / "notes.txt"
    other.write_text("mine")
    _write_steps(tmp_path, 1)
    assert other.read_text() == "mine"
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1


def test_an_unusable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(UserError, match=r"file/run cannot be written \(Not a directory\)"):
        MetricsLog(tmp_path / "file" / "run")


def test_a_full_disk_names_the_file_and_keeps_what_was_written(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    log.write(1, {"train/loss": 2.0})
    log.flush()
    log.write(2, {"train/loss": 1.0})
    log.write(3, {"train/loss": 0.5})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics_log.os, "fsync", full)
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written \(No space left"):
        log.flush()
    assert _steps(tmp_path)[:2] == [1, 2]
