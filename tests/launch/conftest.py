"""What the launchers' tests share: a stand-in for the Python that would train."""

import sys
from pathlib import Path

import pytest
from stub_programs import write_program

_STAND_IN = Path(__file__).with_name("train_stand_in.py")


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A program that takes the arguments of Python and runs ``train_stand_in.py``."""
    script = f'#!/bin/sh\nexec "{sys.executable}" -S "{_STAND_IN}" "$@"\n'
    return write_program(tmp_path / "bin/python", script)
