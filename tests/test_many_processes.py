"""Runs in several processes over localhost: what they learn, what they read, and how they end."""

import re
import signal
import socket
from pathlib import Path

import pytest
from interruption import kill_at
from layouts import MESHES, assert_finished, assert_same, end, every_layout, mesh_flags
from recording_task import RECORDS

from bert_jax.training.preemption import EXIT_PREEMPTED

pytestmark = pytest.mark.slow
STEPS = ("--config.total_steps=6", "--config.evaluate_every_steps=3")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, run_program, small_run, read_numbers):
    workdir = tmp_path_factory.mktemp("one-process")
    finished = run_program("train", *small_run(workdir, *STEPS))
    assert finished.returncode == 0, finished.stderr
    return read_numbers(workdir)


def test_two_processes_learn_the_same_and_four_and_one_go_on(
    tmp_path, start_processes, run_program, small_run, read_numbers, one_process
):
    def back_to_step_3(name):
        """As if the run had been killed there."""
        (tmp_path / "checkpoints" / "6").rename(tmp_path / name)

    run = small_run(tmp_path, *STEPS, "--config.checkpoint_every_steps=3")
    first, second = assert_finished(start_processes(2, 4, *run, *mesh_flags({"fsdp": 8})))
    assert_same(read_numbers(tmp_path), one_process)
    assert (tmp_path / "report.html").exists()
    assert "step 6: validation" in first
    assert "step" not in second

    back_to_step_3("of-two")
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    first, *_ = assert_finished(start_processes(4, 2, *run, *mesh_flags(mesh)))
    assert "processes 2 -> 4" in first
    assert_same(read_numbers(tmp_path), one_process)

    back_to_step_3("of-four")
    finished = run_program("train", *run, devices=2)
    assert finished.returncode == 0, finished.stderr
    assert "devices 8 -> 2" in finished.stderr
    assert_same(read_numbers(tmp_path), one_process)


@pytest.mark.parametrize(
    "processes, mesh",
    [
        *every_layout([(4, MESHES[0])]),
        # Two processes hold one part of the batch together, and both make its rows.
        pytest.param(4, {"data": 2, "tensor": 4}, id="4x2-data2-tensor4"),
    ],
)
def test_every_process_reads_its_own_rows(
    tmp_path, start_processes, read_numbers, run_program, processes, mesh
):
    records = tmp_path / "rows"
    records.mkdir()
    run = ("--config", "tests/recording_task.py", "--config.total_steps=5")
    run = (*run, *mesh_flags(mesh), "--workdir", str(tmp_path / "run"))
    devices, tensor = 8 // processes, mesh.get("tensor", 1)
    recorded = {RECORDS: str(records)}
    assert_finished(start_processes(processes, devices, *run, environment=recorded))
    size = 32 * tensor // 8
    rows_of_each = []
    for number in range(processes):
        lines = [line.split() for line in (records / str(number)).read_text().splitlines()]
        # Batches are made ahead, but none twice.
        assert [int(step) for step, *_ in lines] == list(range(5))
        # Devices that differ in the tensor axis alone, the last, share their rows.
        shards = {device // tensor for device in range(number * devices, (number + 1) * devices)}
        expected = {row for shard in shards for row in range(shard * size, (shard + 1) * size)}
        for _, first, stop in lines:
            assert set(range(int(first), int(stop))) == expected
        rows_of_each.append(expected)
    assert set.union(*rows_of_each) == set(range(32))
    whole = tmp_path / "whole"
    toy = ("--config", "tests/toy_task.py", "--config.total_steps=5", "--workdir", str(whole))
    assert run_program("train", *toy).returncode == 0
    assert_same(read_numbers(tmp_path / "run"), read_numbers(whole))


def test_a_signal_to_one_stops_all_and_a_death_ends_all(tmp_path, start_processes):
    # The others hear of a signal within a second or so, which is many steps of this task.
    command = ("--config", "tests/toy_task.py", "--config.total_steps=1_000_000")
    command = (*command, "--config.evaluate_every_steps=0", "--config.checkpoint_every_steps=0")
    command = (*command, "--workdir", str(tmp_path))

    first, *others = start_processes(4, 1, *command)
    said = kill_at(first, 7, signal.SIGTERM)
    end(others)
    assert [process.returncode for process in (first, *others)] == [EXIT_PREEMPTED] * 4, said
    (saved,) = re.findall(r"stopped and saved at step ([\d,]+)", said)
    assert (tmp_path / "checkpoints" / saved.replace(",", "")).is_dir()

    first, second, third, fourth = start_processes(4, 1, *command)
    before = []
    for line in first.stdout:
        before.append(line)
        if line.startswith("step "):
            third.kill()
            break
    assert any(f"going on from step {saved}" in line for line in before)
    said = end([first, second, fourth])
    assert all(process.returncode not in (0, None) for process in (first, second, fourth))
    assert "Where another one failed first" in "".join(said)


@pytest.mark.parametrize("differ", ["settings", "directories"])
def test_processes_that_differ_are_refused(tmp_path, start_processes, differ):
    toy = ("--config", "tests/toy_task.py", "--config.total_steps=3")
    shared = ("--workdir", str(tmp_path / "run"))
    match differ:
        case "settings":
            own = [(), ("--config.optimizer.learning_rate=0.3",)]
            message = "processes 1 have other settings than process 0; give every host the same"
        case "directories":
            shared, own = (), [("--workdir", str(tmp_path / name)) for name in "ab"]
            for _, directory in own:
                Path(directory).mkdir()
            message = "is not there, or another one, on the hosts of processes 1; give a --workdir"
    said = end(processes := start_processes(2, 1, *toy, *shared, own=own))
    assert [process.returncode for process in processes] == [2, 2], said
    assert all(message in each for each in said), said


def test_who_does_not_come_is_told(tmp_path, start_processes, run_program):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{closed.getsockname()[1]}"
    for process in (0, 1):
        alone = run_program(
            *("train", "--config", "tests/toy_task.py", "--workdir", str(tmp_path)),
            *("--coordinator", coordinator, "--processes=2", f"--process={process}"),
            "--connection_timeout=2",
        )
        assert alone.returncode == 2
        assert alone.stderr.startswith("error: the processes of this run did not all meet at 127.0")
        assert coordinator in alone.stderr
        assert alone.stderr.count("\n") == 1
