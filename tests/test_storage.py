"""Object stores, of which one stands in memory for the real ones."""

import dataclasses
import errno
import functools
import json
import os

import pytest
from etils.epath import backend, gpath
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from bert_jax.data import corpus_copy
from bert_jax.data.corpus import open_corpus
from bert_jax.data.corpus_copy import ensure_copy
from bert_jax.data.preparation import PrepareOptions, prepare_corpus
from bert_jax.data.text_files import find_files
from bert_jax.errors import UserError
from bert_jax.evaluate import evaluate_checkpoint
from bert_jax.prepare import summary
from bert_jax.pretrained import load
from bert_jax.training.atomic_file import write_atomically
from bert_jax.training.processes import claim_shared_workdir
from bert_jax.training.workdir import claim_workdir


class MemoryStore(MemoryFileSystem):
    """What fsspec offers of a store, with the store's names."""

    protocol = ("gcs", "gs")
    store: dict = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        return "/" + path.removeprefix("gs://").removeprefix("gcs://").strip("/") if path else ""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store with two files of text and something else in the bucket ``texts``."""
    monkeypatch.setattr(MemoryStore, "store", {})
    monkeypatch.setattr(MemoryStore, "pseudo_dirs", [""])
    made = MemoryStore()
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    file_systems = {"gcs": made, "file": LocalFileSystem()}
    monkeypatch.setattr(
        backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: file_systems[name]
    )
    rows = [{"text": f"The cat sat {number}. It saw a dog."} for number in range(20)]
    made.pipe_file("gs://texts/one/a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    made.pipe_file("gs://texts/one/deep/b.txt", b"A dog ran. It was green.\n\nWhy not?\n")
    made.pipe_file("gs://texts/one/picture.png", b"\x89PNG")
    return made


def test_files_of_a_store_are_found(store):
    def names(pattern):
        return [os.fspath(path) for path in find_files(pattern)]

    assert names("gs://texts/one") == ["gs://texts/one/a.jsonl", "gs://texts/one/deep/b.txt"]
    assert names("gs://texts/o*/*.jsonl") == ["gs://texts/one/a.jsonl"]
    assert names("gs://texts/one/deep/b.txt") == ["gs://texts/one/deep/b.txt"]
    with pytest.raises(UserError, match="No file matches --input 'gs://texts/none'"):
        names("gs://texts/none")
    with pytest.raises(UserError, match=r"has \*\*, which object stores do not offer"):
        names("gs://texts/**/*.txt")


@pytest.mark.parametrize("beam_runner", [None, "DirectRunner"])
def test_a_corpus_in_a_store(store, tmp_path, monkeypatch, beam_runner):
    if beam_runner:
        pytest.importorskip("apache_beam")
    for name in ("one/a.jsonl", "one/deep/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(store.cat_file(f"gs://texts/{name}"))
    options = PrepareOptions(vocabulary_size=60, max_length=16, workers=0)
    local = prepare_corpus([str(tmp_path / "one")], tmp_path / "corpus", options)
    options = dataclasses.replace(options, beam_runner=beam_runner)
    remote = prepare_corpus(["gs://texts/one"], "gs://corpora/mine", options)
    with pytest.raises(UserError, match="give --overwrite to replace it"):
        prepare_corpus(["gs://texts/one"], "gs://corpora/mine", options)
    again = dataclasses.replace(options, overwrite=True, vocabulary="gs://corpora/mine")
    remote = prepare_corpus(
        ["gs://texts/one/*.jsonl", "gs://texts/one"], "gs://corpora/mine", again
    )
    assert remote.fingerprint == local.fingerprint
    assert store.ls("gs://corpora/mine", detail=False) == ["/corpora/mine/bert_corpus"]
    assert os.fspath(remote.directory) == "gs://corpora/mine"
    assert store.ls("gs://corpora", detail=False) == ["/corpora/mine"], "nothing half-made stays"
    assert "corpus=gs://corpora/mine --workdir runs/mine" in summary(remote)
    with pytest.raises(UserError, match="copies it to a disk"):
        remote.split("train")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = ensure_copy("gs://corpora/mine")
    assert open_corpus(copy).split("train").lengths.sum() > 0
    for written in sorted((tmp_path / "corpus").rglob("*.*_*")):
        assert (
            copy / written.relative_to(tmp_path / "corpus")
        ).read_bytes() == written.read_bytes()
    monkeypatch.setattr(MemoryStore, "get_file", None)
    assert ensure_copy("gs://corpora/mine") == copy


def test_a_corpus_that_changes_while_it_is_copied(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = PrepareOptions(vocabulary_size=60, max_length=16, workers=0)
    prepare_corpus(["gs://texts/one"], "gs://corpora/mine", options)
    original, calls = corpus_copy.copy, []

    def copy_and_replace(source, target):
        original(source, target)
        calls.append(source)
        if len(calls) == 1:
            more = dataclasses.replace(options, overwrite=True)
            prepare_corpus(["gs://texts/one/a.jsonl"], "gs://corpora/mine", more)

    monkeypatch.setattr(corpus_copy, "copy", copy_and_replace)
    with pytest.raises(UserError, match="gs://corpora/mine changed while it was copied; try again"):
        ensure_copy("gs://corpora/mine")
    kept = ensure_copy("gs://corpora/mine")
    assert open_corpus(kept).fingerprint == open_corpus("gs://corpora/mine").fingerprint
    assert len(calls) == 2
    assert [path for path in kept.parent.iterdir() if path.is_dir()] == [kept]


def test_a_full_disk_is_not_the_store_s_fault(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = PrepareOptions(vocabulary_size=60, max_length=16, workers=0)
    prepare_corpus(["gs://texts/one"], "gs://corpora/mine", options)

    def fill(source, target):
        (target / "half").mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpus_copy, "copy", fill)
    with pytest.raises(UserError, match="No space left on device.; set XDG_CACHE_HOME"):
        ensure_copy("gs://corpora/mine")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name == "half"]


def test_a_store_that_cannot_be_reached(store, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError("Anonymous caller does not have storage.objects.get access\nmore")

    monkeypatch.setattr(MemoryStore, "exists", refuse)
    with pytest.raises(
        UserError, match=r"gs://texts/one cannot be reached \(PermissionError: Anon"
    ):
        find_files("gs://texts/one")


def test_a_store_without_its_library(store, monkeypatch):
    def missing(self, name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", missing)
    for output, inputs in (("gs://corpora/mine", "a.txt"), ("corpus", "gs://texts/one")):
        with pytest.raises(UserError, match=r"pip install -e '\.\[gcs\]'"):
            prepare_corpus([inputs], output, PrepareOptions())
    for read in (load, functools.partial(evaluate_checkpoint, which="latest")):
        with pytest.raises(UserError, match=r"pip install -e '\.\[gcs\]'"):
            read("gs://runs/base")


def test_models_in_a_store_that_is_empty_or_not_to_be_reached(store, monkeypatch):
    with pytest.raises(UserError, match="gs://runs/base holds no model"):
        load("gs://runs/base")
    with pytest.raises(UserError, match="gs://runs/base holds no checkpoints"):
        evaluate_checkpoint("gs://runs/base", "latest")

    def refuse(*arguments, **keywords):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(MemoryStore, "ls", refuse)
    for read in (load, functools.partial(evaluate_checkpoint, which="latest")):
        with pytest.raises(UserError, match="cannot be reached .*Name or service not known"):
            read("gs://runs/base")


def test_a_working_directory_in_a_store_is_mirrored(store):
    with claim_shared_workdir("gs://runs/base") as workdir:
        assert workdir.files != workdir.place
        assert not list(workdir.files.iterdir())
        (workdir.files / "metrics.jsonl").write_text("1\n")
        (workdir.files / "tensorboard").mkdir()
        (workdir.files / "tensorboard" / "events").write_text("e")
        workdir.publish()
        assert store.cat_file("gs://runs/base/metrics.jsonl") == b"1\n"
        (workdir.files / "metrics.jsonl").write_text("1\n2\n")
        store.pipe_file("gs://runs/base/tensorboard/events", b"seen")  # what did not change stays
    assert store.cat_file("gs://runs/base/metrics.jsonl") == b"1\n2\n"
    assert store.cat_file("gs://runs/base/tensorboard/events") == b"seen"
    with claim_shared_workdir("gs://runs/base") as workdir:
        assert (workdir.files / "metrics.jsonl").read_text() == "1\n2\n"


def test_a_small_file_in_a_store_is_replaced(store):
    for content in (b"old", b"new"):
        write_atomically("gs://runs/base/scores.json", content)
        assert store.cat_file("gs://runs/base/scores.json") == content


def test_only_single_runs_are_kept_in_a_store():
    claimed = claim_workdir("gs://runs/grid")
    with pytest.raises(UserError, match="gs://runs/grid is in an object store"), claimed:
        pass


def test_a_store_that_refuses_is_told(store, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError("403")

    monkeypatch.setattr(MemoryStore, "_open", refuse)
    with (
        pytest.raises(UserError, match="gs://runs/base cannot be reached .*check the path"),
        claim_shared_workdir("gs://runs/base") as workdir,
    ):
        (workdir.files / "config.json").write_text("{}")
