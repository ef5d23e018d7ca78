import io

import pytest

from bert_jax.training import progress as progress_module
from bert_jax.training.progress import Progress, follow

_VALUES = {
    "train/loss": 2.34567,
    "train/mlm_loss": 1.5,
    "speed/tokens_per_second": 12345.0,
    "speed/mfu": 0.4123,
    "speed/data_wait": 0.031,
}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time that Progress sees, in a list so that a test can set it."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_file_gets_one_plain_line_for_each_call_with_values(clock):
    stream = io.StringIO()
    with Progress(400, initial_step=100, stream=stream) as progress:
        progress.update(101)
        clock[0] = 99.0
        progress.note("evaluating")
        progress.update(200, _VALUES)
    assert stream.getvalue() == (
        "evaluating\n"
        "step 200/400 (50%), loss 2.3457, 12.3k tokens/s, MFU 41.2%, 3% waiting for data, "
        "03:20 left\n"
    )


def test_what_is_not_known_is_not_shown():
    stream = io.StringIO()
    with Progress(1000, stream=stream) as progress:
        progress.update(10, {"train/loss": 1.0, "speed/tokens_per_second": 950.0})
    assert stream.getvalue() == "step 10/1,000 (1%), loss 1.0000, 950 tokens/s\n"


def test_a_terminal_gets_a_bar_and_whole_lines_above_it():
    stream = _Terminal()
    with Progress(400, initial_step=100, stream=stream) as progress:
        progress.update(200, _VALUES)
        progress.note("saved step 200")
        progress.update(400, {})
    shown = stream.getvalue()
    assert "100/400" in shown and "400/400" in shown
    assert "saved step 200\n" in shown
    assert shown.endswith("\n")
    last_bar = shown.rstrip("\n").rsplit("\r", 1)[-1]
    assert "loss 2.3457, 12.3k tokens/s, MFU 41.2%, 3% waiting for data" in last_bar


def test_items_are_given_on_and_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])

    def slowly():
        for number in range(4):
            now[0] += 20.0
            yield number

    stream = io.StringIO()
    assert list(follow(slowly(), 4, "batches", stream)) == [0, 1, 2, 3]
    assert stream.getvalue() == "2/4 (50%) batches\n4/4 (100%) batches\n"
    stream = io.StringIO()
    assert list(follow(slowly(), None, "answers", stream)) == [0, 1, 2, 3]
    assert stream.getvalue() == "2 answers\n4 answers\n"
    terminal = _Terminal()
    assert list(follow(range(3), 3, "batches", terminal)) == [0, 1, 2]
    assert "0/3" in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), _Terminal()])
def test_other_processes_show_nothing(stream):
    with Progress(10, enabled=False, stream=stream) as progress:
        progress.update(5, _VALUES)
        progress.note("compiling")
    assert stream.getvalue() == ""


def test_closing_twice_is_harmless_and_notes_still_come_out():
    stream = _Terminal()
    progress = Progress(10, stream=stream)
    progress.close()
    progress.close()
    progress.note("finished")
    assert stream.getvalue().endswith("finished\n")


def test_standard_error_is_the_default(capsys):
    with Progress(10) as progress:
        progress.note("compiling")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "compiling\n"
