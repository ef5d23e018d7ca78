import importlib.metadata
import socket
import subprocess

import jax
import pytest

from bert_jax.training import environment as environment_module
from bert_jax.training.environment import describe_changes, environment


def test_versions_and_devices_are_told():
    described = environment()
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        assert described[package] == importlib.metadata.version(package)
    assert described["devices"] == str(jax.device_count())
    assert described["backend"] == jax.default_backend()
    assert int(described["usable cores"]) >= 1
    assert all(isinstance(value, str) and value for value in described.values())


def test_the_host_is_not_told():
    assert socket.gethostname() not in environment().values()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one committed file, of which the module believes to be that file."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", *identity, *arguments]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    (tmp_path / "environment.py").write_text("first")
    git("init", "-q")
    git("add", "environment.py")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(environment_module, "__file__", str(tmp_path / "environment.py"))
    return tmp_path, git


def test_the_commit_is_told_and_whether_it_was_changed(checkout):
    directory, git = checkout
    assert git("rev-parse", "HEAD").startswith(environment()["commit"])
    (directory / "environment.py").write_text("second")
    assert environment()["commit"].endswith("-dirty")


def test_another_project_s_checkout_does_not_count(checkout, monkeypatch):
    directory, _ = checkout
    monkeypatch.setattr(environment_module, "__file__", str(directory / "installed.py"))
    assert "commit" not in environment()


def test_changes_are_told_in_words():
    before = {"python": "3.11.7", "jax": "0.10.2", "commit": "abc"}
    after = {"python": "3.11.7", "jax": "0.11.0", "device": "TPU v4"}
    assert describe_changes(before, after) == [
        "jax 0.10.2 -> 0.11.0",
        "commit abc -> unknown",
        "device unknown -> TPU v4",
    ]
    assert describe_changes(before, before) == []
