import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

LOCAL = str(ROOT / "launch/local.sh")


@pytest.fixture
def start_local(tmp_path: Path, stand_in: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the launcher: (*arguments, prefix=(), **settings)."""
    os.mkfifo(tmp_path / "ready")

    def start(*arguments: str, prefix: tuple[str, ...] = (), **settings: str):
        environment = dict(os.environ) | {"PYTHON": str(stand_in), "LOGS": str(tmp_path / "logs")}
        environment.pop("XLA_FLAGS", None)
        return subprocess.Popen(
            [*prefix, LOCAL, *arguments],
            env=environment | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run_local(start_local, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs the launcher of N processes to its end: its exit code, output and error output."""

    def run(processes: int, *flags: str, **settings: str):
        launcher = start_local(str(processes), "--workdir", str(tmp_path), *flags, **settings)
        output, errors = launcher.communicate(timeout=60)
        return launcher.returncode, output, errors

    return run


def wait_until_ready(workdir: Path, processes: int) -> None:
    with open(workdir / "ready") as ready:
        for _ in range(processes):
            assert ready.readline() == "ready\n"


def started(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "started").read_text().splitlines()]


def attempts(workdir: Path, process: int) -> int:
    return sum(line["process"] == process for line in started(workdir))


def test_processes_are_told_of_each_other_and_flags_come_through_whole(run_local, tmp_path):
    code, output, errors = run_local(3, "--config.corpus=a b*'\"$HOME", DEVICES="2")
    assert code == 0
    processes = started(tmp_path)
    ports = set()
    for process in processes:
        module = [
            "-m",
            "bert_jax.train",
            "--workdir",
            str(tmp_path),
            "--config.corpus=a b*'\"$HOME",
        ]
        assert process["argv"][:5] == module
        flags = dict(zip(process["argv"][5::2], process["argv"][6::2], strict=True))
        assert flags.keys() == {"--coordinator", "--processes", "--process"}
        assert flags["--processes"] == "3"
        ports.add(flags["--coordinator"])
        assert process["env"]["XLA_FLAGS"].split() == ["--xla_force_host_platform_device_count=2"]
        assert process["env"]["JAX_PLATFORMS"] == "cpu"
    assert sorted(process["argv"][-1] for process in processes) == ["0", "1", "2"]
    assert len(ports) == 1 and ports.pop().startswith("127.0.0.1:")
    # Process 0 writes here, the others to the files that were named.
    assert output == "process 0 is here\n"
    assert str(tmp_path / "logs") in errors
    assert (tmp_path / "logs/process_2.log").read_text() == "process 2 is here\n"


@pytest.mark.parametrize(
    "death, code, how", [("2:1", 1, "with exit code 1"), ("2:-9", 137, "of SIGKILL")]
)
def test_the_first_death_is_named_and_ends_the_others(run_local, death, code, how):
    # The others would wait for ever.
    returned, _, errors = run_local(4, "--hold", "--die", death)
    assert returned == code
    assert f"process 2 died first, {how}; ending the others" in errors
    assert "process_2.log:\nprocess 2 is here\nits last words\n" in errors
    last = errors.splitlines()[-1]
    assert last == f"launch/local.sh: all have ended; process 2 died first, {how}"


def test_who_does_not_answer_sigterm_is_killed(run_local):
    code, _, errors = run_local(3, "--stubborn", "--die", "1:3", GRACE="1")
    assert code == 3
    assert "all have ended; process 1 died first, with exit code 3" in errors


def test_process_0_may_be_the_first(run_local):
    code, _, errors = run_local(2, "--hold", "--die", "0:7")
    assert code == 7
    assert "process 0 died first, with exit code 7" in errors
    assert "its last words" in errors


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_nothing_is_started_again(start_local, tmp_path, number, code):
    launcher = start_local("3", "--workdir", str(tmp_path), "--hold", RESTARTS="3")
    wait_until_ready(tmp_path, 3)
    launcher.send_signal(number)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == code
    assert "died" not in errors
    assert len(started(tmp_path)) == 3


def test_ctrl_c_in_a_terminal_comes_once_to_each(start_local, tmp_path):
    terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    prefix = (sys.executable, "-c", terminal)
    launcher = start_local("2", "--workdir", str(tmp_path), "--hold", prefix=prefix)
    wait_until_ready(tmp_path, 2)
    launcher.stdin.write("\x03")
    launcher.stdin.flush()
    launcher.communicate(timeout=60)
    assert launcher.returncode == 130


def test_a_death_is_followed_by_as_many_restarts_as_allowed(run_local, tmp_path):
    code, _, errors = run_local(2, "--hold", "--die", "1:1", RESTARTS="2")
    assert code == 1
    assert attempts(tmp_path, 1) == 3
    assert errors.count("all have ended; process 1 died first") == 3
    logs = (tmp_path / "logs/process_1.log").read_text()
    assert logs.count("its last words") == 3


def test_one_process_stopped_by_another_hand_is_started_again(run_local, tmp_path):
    code, _, errors = run_local(2, "--die", "1:75", RESTARTS="1")
    assert code == 75
    assert attempts(tmp_path, 1) == 2
    assert "died" not in errors


def test_wrong_input_of_the_user_is_not_tried_again(run_local, tmp_path):
    code, _, _ = run_local(2, "--hold", "--die", "1:2", RESTARTS="2")
    assert code == 2
    assert attempts(tmp_path, 1) == 1


@pytest.mark.parametrize(
    "arguments, settings, message",
    [
        ((), {}, "give the number of processes and train's flags"),
        (("two",), {}, "the number of processes must be a whole number, not 'two'"),
        (("0",), {}, "the number of processes must be at least 1"),
        (("2",), {"DEVICES": "-1"}, "DEVICES must be a whole number, not '-1'"),
        (("2",), {"RESTARTS": "many"}, "RESTARTS must be a whole number, not 'many'"),
        (("2",), {"PYTHON": "no-such-python"}, "there is no program 'no-such-python'"),
    ],
)
def test_bad_input_gets_one_sentence(start_local, arguments, settings, message):
    launcher = start_local(*arguments, **settings)
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    assert output == ""
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
