import errno
import os
import stat

import pytest

from bert_jax.errors import UserError
from bert_jax.training.atomic_file import (
    open_atomically,
    write_atomically,
    write_directory_atomically,
)


def test_the_content_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "report.html"
    write_atomically(path, b"a longer first version")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["report.html"]


def test_the_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "atomic", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_links_permissions_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "private").touch(mode=0o600)
    (tmp_path / "link").symlink_to("private")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "private").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", b"through it")
    assert os.read(reader, 100) == b"through it"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_pipe_is_written_by_the_name_that_it_is_given():
    reader, writer = os.pipe()
    write_atomically(f"/dev/fd/{writer}", b"through it")
    assert os.read(reader, 100) == b"through it"

    def write_too_late():
        with open_atomically(f"/dev/fd/{writer}") as file:
            os.close(reader)  # as head does when it has read enough
            file.write(b"too late")

    with pytest.raises(BrokenPipeError):
        write_too_late()
    os.close(writer)


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_atomically(path, b"first")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"report.html cannot be written \(No space left"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_directory_appears_whole(tmp_path):
    path = tmp_path / "parent" / "model"
    with write_directory_atomically(path) as partial:
        (partial / "weights").write_bytes(b"1")
        assert not path.exists()
    assert os.listdir(path) == ["weights"]
    assert os.listdir(path.parent) == ["model"]
    with pytest.raises(UserError, match="exists already"), write_directory_atomically(path):
        pytest.fail("something is there")
    assert os.listdir(path) == ["weights"]
    path.joinpath("weights").unlink()
    with write_directory_atomically(path) as partial:
        (partial / "weights").write_bytes(b"2")
    assert (path / "weights").read_bytes() == b"2"


def test_a_directory_that_fails_is_not_there(tmp_path):
    def fail():
        with write_directory_atomically(tmp_path / "new" / "newer" / "model") as partial:
            (partial / "weights").write_bytes(b"1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path) == []
    (tmp_path / ".model.partial").mkdir()  # what a killed program leaves
    (tmp_path / ".model.partial" / "old").touch()
    with write_directory_atomically(tmp_path / "model") as partial:
        assert not any(partial.iterdir())
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/model cannot be written"),
        write_directory_atomically(tmp_path / "file" / "model"),
    ):
        pytest.fail("no directory can be there")
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]
