import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from stub_programs import write_program

SBATCH = ROOT / "launch/slurm.sbatch"
TRAIN = ("--config", "configs/pretrain.py:base", "--workdir", "/shared/a b")

# As srun does, it hands its program on and ends with its code.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" >"$STUB_DIRECTORY/srun"
[[ -z $STUB_SIGNAL ]] || kill -s "$STUB_SIGNAL" "$PPID"
exit "$STUB_CODE"
"""
SQUEUE = '#!/bin/bash\n[[ "$*" == "--noheader --jobs=17 --format=%T" ]] && echo "$STUB_STATE"\n'
SCONTROL = '#!/bin/bash\necho "$@" >>"$STUB_DIRECTORY/scontrol"\n'


@pytest.fixture
def run_job(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the batch script as SLURM would: (*arguments, code=0, state="RUNNING", number="")."""
    for name, script in {"srun": SRUN, "squeue": SQUEUE, "scontrol": SCONTROL}.items():
        write_program(tmp_path / "bin" / name, script)

    def run(*arguments: str, code: int = 0, state: str = "RUNNING", number: str = ""):
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "STUB_DIRECTORY": str(tmp_path),
            "STUB_CODE": str(code),
            "STUB_STATE": state,
            "STUB_SIGNAL": number,
        }
        return subprocess.run(
            ["bash", SBATCH, *arguments],
            env=dict(os.environ) | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def requeued(directory: Path) -> bool:
    calls = directory / "scontrol"
    if calls.exists():
        assert calls.read_text() == "requeue 17\n"
    return calls.exists()


def test_train_is_started_by_srun_with_its_flags_whole(run_job, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON", "/env/bin/python")
    assert run_job(*TRAIN).returncode == 0
    command = (tmp_path / "srun").read_text().splitlines()
    start = command.index("/env/bin/python")
    assert command[start:] == ["/env/bin/python", "-m", "bert_jax.train", *TRAIN]
    # After the first task has ended the others are not waited for without end.
    assert any(re.fullmatch(r"--wait=\d+", flag) for flag in command[:start])


@pytest.mark.parametrize(
    "code, state, again",
    [
        (75, "RUNNING", True),
        (75, "COMPLETING", False),  # the user has cancelled it
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (2, "RUNNING", False),
        (137, "RUNNING", False),
    ],
)
def test_what_was_preempted_goes_back_to_the_queue(run_job, tmp_path, code, state, again):
    assert run_job(*TRAIN, code=code, state=state).returncode == code
    assert requeued(tmp_path) == again


def test_sigterm_leaves_the_shell_time_to_put_the_job_back(run_job, tmp_path):
    assert run_job(*TRAIN, code=75, number=signal.SIGTERM.name).returncode == 75
    assert requeued(tmp_path)


def test_without_flags_nothing_is_started(run_job, tmp_path):
    done = run_job()
    assert done.returncode == 2
    assert done.stderr.startswith("error: give train's flags") and done.stderr.count("\n") == 1
    assert not (tmp_path / "srun").exists()


def test_directives_ask_for_a_task_for_each_gpu_and_a_warning_before_the_time_is_up():
    directives = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in SBATCH.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]
    # To the processes; with B: in front it would come to the shell alone.
    assert re.fullmatch(r"TERM@\d+", directives["signal"])
    assert "requeue" in directives
