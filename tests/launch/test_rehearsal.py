"""launch/local.sh with the real program: a process is killed, and the run is none the worse."""

import subprocess
import sys

import pytest
from conftest import ROOT, devices_flags, program_environment
from dying_task import MARK

pytestmark = pytest.mark.slow


def test_a_run_that_lost_a_process_goes_on(tmp_path, compiled_programs, read_numbers):
    mark = tmp_path / "died"

    def rehearse(name: str) -> subprocess.CompletedProcess[str]:
        environment = program_environment(compiled_programs) | devices_flags(1)
        recipe = ("--config", "tests/dying_task.py", "--workdir", str(tmp_path / name))
        return subprocess.run(
            ["launch/local.sh", "4", *recipe, "--heartbeat_timeout=10"],
            env=environment | {"PYTHON": sys.executable, "RESTARTS": "1", MARK: str(mark)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )

    killed = rehearse("killed")
    assert killed.returncode == 0, killed.stderr
    assert mark.exists()
    assert "process 2 died first, of SIGKILL" in killed.stderr
    assert "starting again from the last checkpoint" in killed.stderr
    assert "going on from step" in killed.stderr
    whole = rehearse("whole")  # the mark is there
    assert whole.returncode == 0, whole.stderr
    assert "died" not in whole.stderr
    assert read_numbers(tmp_path / "killed") == read_numbers(tmp_path / "whole")
