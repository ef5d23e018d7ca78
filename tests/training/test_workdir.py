"""What is left of a working directory."""

import contextlib
from pathlib import Path

import pytest

from bert_jax.errors import UserError
from bert_jax.training.workdir import claim_workdir


def end(workdir: Path, *written: str) -> None:
    """A run that makes directories, writes some files and ends."""
    with claim_workdir(str(workdir)) as claimed:
        (claimed / "checkpoints" / "step").mkdir(parents=True)
        for name in written:
            (claimed / name).write_text("something")


def test_a_new_directory_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    end(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_stays(tmp_path: Path) -> None:
    end(tmp_path / "run", "config.json", "checkpoints/step/weights")
    assert (tmp_path / "run" / "config.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "step" / "weights").exists()


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    end(tmp_path / "run")
    assert (tmp_path / "run").is_dir()


def test_another_run_in_a_directory_of_it_stays(tmp_path: Path) -> None:
    outer, inner = str(tmp_path / "runs"), str(tmp_path / "runs" / "other")
    with contextlib.ExitStack() as stack:
        with claim_workdir(outer):
            stack.enter_context(claim_workdir(inner))
        with pytest.raises(UserError, match="in use by another run"), claim_workdir(inner):
            pass


def test_a_name_that_cannot_be_is_told(tmp_path: Path) -> None:
    claim = claim_workdir(str(tmp_path / ("x" * 300)))
    with pytest.raises(UserError, match="cannot be written"), claim:
        pass
