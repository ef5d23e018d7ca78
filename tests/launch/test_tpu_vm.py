import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from stub_programs import write_program

TPU_VM = str(ROOT / "launch/tpu_vm.sh")
TRAIN = ("--config", "configs/pretrain.py:base", "--workdir", "gs://bucket/a b")

# What a worker has and calls when the project is installed on it.
PIP = """#!/bin/bash
[[ "$*" == "-m pip install --quiet --user uv" ]] || exit 9
mkdir -p ~/.local/bin
cp "$STUB_DIRECTORY/bin/uv" ~/.local/bin/uv
"""
UV = """#!/bin/bash
echo "$PWD: $*" >>"$STUB_DIRECTORY/uv calls"
[[ $1 != venv ]] || { mkdir -p env/bin && cp "$STUB_DIRECTORY/bin/python" env/bin/python; }
"""


@pytest.fixture
def cloud(tmp_path: Path, stand_in: Path) -> Path:
    """The directory of a stand-in for Google Cloud; its programs are in ``bin``."""
    stub = ROOT / "tests/launch/gcloud_stub.py"
    write_program(tmp_path / "bin/gcloud", f'#!/bin/sh\nexec "{sys.executable}" -S "{stub}" "$@"\n')
    write_program(tmp_path / "bin/python3", PIP)
    write_program(tmp_path / "bin/uv", UV)
    os.mkfifo(tmp_path / "ready")
    return tmp_path


@pytest.fixture
def start_tpu_vm(cloud: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the launcher: (*arguments, **settings)."""

    def start(*arguments: str, **settings: str):
        environment = {
            "PATH": f"{cloud / 'bin'}:{os.environ['PATH']}",
            "STUB_DIRECTORY": str(cloud),
            "NAME": "mine",
            "ZONE": "us-west4-a",
            "TYPE": "v5litepod-16",
            "POLL": "0",
        }
        return subprocess.Popen(
            [TPU_VM, *arguments],
            env=dict(os.environ) | environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def tpu_vm(start_tpu_vm) -> Callable[..., tuple[int, str, str]]:
    """Runs the launcher to its end: its exit code, output and error output."""

    def run(*arguments: str, **settings: str):
        launcher = start_tpu_vm(*arguments, **settings)
        output, errors = launcher.communicate(timeout=60)
        return launcher.returncode, output, errors

    return run


def calls(cloud: Path, verb: str) -> list[list[str]]:
    lines = (cloud / "calls").read_text().splitlines() if (cloud / "calls").exists() else []
    return [call[2:] for call in map(json.loads, lines) if call[3] == verb]


def started(cloud: Path) -> list[dict]:
    return [json.loads(line) for line in (cloud / "started").read_text().splitlines()]


def test_create_hands_its_flags_to_gcloud_and_creates_once(tpu_vm, cloud):
    assert tpu_vm("create", "--spot", "--network=ours", PROJECT="p")[0] == 0
    (call,) = calls(cloud, "create")
    assert call[:3] == ["tpu-vm", "create", "mine"]
    assert set(call[3:]) == {
        *("--version=v2-alpha-tpuv5-lite", "--accelerator-type=v5litepod-16"),
        *("--spot", "--network=ours", "--zone=us-west4-a", "--project=p", "--quiet"),
    }
    assert tpu_vm("create")[0] == 0
    assert len(calls(cloud, "create")) == 1


def test_a_queued_resource_is_waited_for(tpu_vm, cloud):
    code, _, errors = tpu_vm("create", "--spot", QUEUED="1", TYPE="v6e-8")
    assert code == 0
    (call,) = calls(cloud, "create")
    assert call[:3] == ["queued-resources", "create", "mine"]
    assert {"--node-id=mine", "--runtime-version=v2-alpha-tpuv6e", "--spot"} < set(call)
    assert "its request WAITING_FOR_RESOURCES" in errors and "its request PROVISIONING" in errors


def test_install_puts_the_commit_on_every_worker_twice_without_harm(tpu_vm, cloud):
    tpu_vm("create")
    assert tpu_vm("install")[0] == 0
    assert tpu_vm("install")[0] == 0
    commit = ["git", "rev-parse", "HEAD"]
    here = subprocess.check_output(commit, cwd=ROOT)
    for worker in (0, 1):
        place = cloud / f"worker_{worker}/bert_jax"
        assert subprocess.check_output(commit, cwd=place / "source") == here
        assert (place / "source/configs/pretrain.py").exists()
        lines = (cloud / "uv calls").read_text().splitlines()
        mine = [line.removeprefix(f"{place}: ") for line in lines if line.startswith(str(place))]
        pip = "pip install --quiet --python env/bin/python --editable source[tpu]"
        assert mine == ["venv --quiet --python 3.12 env", pip, pip]


def test_a_started_run_outlives_the_connection_and_can_be_followed_and_stopped(tpu_vm, cloud):
    tpu_vm("create")
    code, _, errors = tpu_vm("follow")
    assert code == 2 and errors == "error: nothing was started on mine\n"
    tpu_vm("install")
    awkward = '--config.name=it\'s $HOME; "x" *'
    assert tpu_vm("start", *TRAIN, "--hold", awkward)[0] == 0
    with open(cloud / "ready") as ready:
        assert [ready.readline(), ready.readline()] == ["ready\n", "ready\n"]
    # It is running: to start it again changes nothing, and its files are not taken away.
    code, _, errors = tpu_vm("install")
    assert code != 0 and "w-0: a run is going on" in errors
    assert tpu_vm("start", *TRAIN, "--hold")[0] == 0
    assert [line["process"] for line in started(cloud)] in ([0, 1], [1, 0])
    for line in started(cloud):
        assert line["argv"] == ["-m", "bert_jax.train", *TRAIN, "--hold", awkward]
        assert line["env"]["PWD"].endswith(f"worker_{line['process']}/bert_jax/source")
    assert tpu_vm("stop")[0] == 0
    for worker in (0, 1):
        assert (cloud / f"worker_{worker}/bert_jax/exit_code").read_text() == "75\n"
    code, output, _ = tpu_vm("follow")
    assert code == 75
    assert "process 0 is here" in output


@pytest.mark.parametrize("queued", ["", "1"])
def test_a_preempted_run_goes_on_on_a_new_slice(tpu_vm, cloud, queued):
    (cloud / "plan").write_text("disconnect\npreempt")
    (cloud / "no capacity").touch()
    command = ("run", "--spot", "--", *TRAIN, "--hold", "--times", "1")
    if not queued:
        code, _, _ = tpu_vm(*command)
        assert code == 1  # the first refusal is final
        (cloud / "no capacity").unlink()
    code, output, errors = tpu_vm(*command, QUEUED=queued, RESTARTS="0")
    assert code == 0, errors
    assert "the connection broke off" in errors
    assert "the network is down" in errors
    assert "the slice is PREEMPTED" in errors
    kind = "queued-resources" if queued else "tpu-vm"
    assert [call[0] for call in calls(cloud, "delete")] == [kind]
    assert ("--force" in calls(cloud, "delete")[0]) == bool(queued)
    first, second = calls(cloud, "create")[-2:]
    assert first == second and "--spot" in first
    # Both attempts had the same flags, on both workers.
    assert sorted(line["process"] for line in started(cloud)) == [0, 0, 1, 1]
    assert len({tuple(line["argv"]) for line in started(cloud)}) == 1
    assert "process 0 is here" in output


def test_run_follows_what_is_running_already(start_tpu_vm, tpu_vm, cloud):
    tpu_vm("create")
    tpu_vm("install")
    tpu_vm("start", *TRAIN, "--hold")
    with open(cloud / "ready") as ready:
        assert [ready.readline(), ready.readline()] == ["ready\n", "ready\n"]
    launcher = start_tpu_vm("run", "--", *TRAIN, "--hold")
    assert launcher.stdout.readline() == "process 0 is here\n"
    tpu_vm("stop")
    launcher.communicate(timeout=60)
    assert launcher.returncode == 75
    assert len(started(cloud)) == 2


def test_a_run_that_dies_is_started_again_and_the_first_death_is_on_top(tpu_vm, cloud):
    code, _, errors = tpu_vm("run", "--", *TRAIN, "--die", "0:7", "--times", "2", RESTARTS="1")
    assert code == 7
    assert len(calls(cloud, "create")) == 1
    assert [line["process"] for line in started(cloud)].count(0) == 2
    ends = [line for line in errors.splitlines() if ": exit code " in line]
    assert len(ends) == 4 and ends[:2] == sorted(ends[:2])
    assert any("w-0: exit code 7; its last words" in end for end in ends)
    assert tpu_vm("run", "--", *TRAIN, "--die", "0:7", "--times", "2")[0] == 0


def test_wrong_input_of_the_user_is_not_tried_again(tpu_vm, cloud):
    assert tpu_vm("run", "--", *TRAIN, "--die", "0:2")[0] == 2
    assert [line["process"] for line in started(cloud)].count(0) == 1


def test_delete_finds_either_kind_and_may_be_repeated(tpu_vm, cloud):
    tpu_vm("create")
    assert tpu_vm("delete")[0] == 0
    tpu_vm("create", QUEUED="1")
    assert tpu_vm("delete")[0] == 0
    code, _, errors = tpu_vm("delete")
    assert code == 0 and "there is no mine in us-west4-a" in errors
    assert [call[0] for call in calls(cloud, "delete")] == ["tpu-vm", "queued-resources"]


@pytest.mark.parametrize("command", [("create",), ("delete",), ("run", "--", *TRAIN)])
def test_a_slice_that_may_not_be_looked_at_is_not_taken_for_absent(tpu_vm, cloud, command):
    (cloud / "forbidden").touch()
    code, _, errors = tpu_vm(*command)
    assert code == 1
    assert "PERMISSION_DENIED" in errors
    assert calls(cloud, "create") == calls(cloud, "delete") == []


@pytest.mark.parametrize(
    "arguments, settings, message",
    [
        (("destroy",), {}, "there is no command 'destroy'"),
        (("create",), {"NAME": ""}, "set NAME"),
        (("create",), {"ZONE": ""}, "set ZONE"),
        (("create",), {"TYPE": ""}, "set TYPE"),
        (("create",), {"TYPE": "v9-8"}, "set RUNTIME to the TPU software version for TYPE=v9-8"),
        (("run", *TRAIN), {}, "run needs -- before train's flags"),
        (("run", "--", "--workdir", "runs/a"), {}, "train needs --workdir gs://BUCKET/DIR"),
        (("start", "--workdir=runs/a"), {}, "train needs --workdir gs://BUCKET/DIR"),
        (("create",), {"POLL": "soon"}, "POLL=soon must be a whole number"),
    ],
)
def test_bad_input_gets_one_sentence_and_calls_nothing(tpu_vm, cloud, arguments, settings, message):
    code, output, errors = tpu_vm(*arguments, **settings)
    assert code == 2
    assert output == ""
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert not (cloud / "calls").exists()
