"""The cache of the built-in corpus."""

import shutil
import subprocess

import pytest

from bert_jax.data.corpus import open_corpus
from bert_jax.data.documentation_corpus import cached_docs_corpus, ensure_docs_corpus
from bert_jax.errors import Stopped, UserError


def test_a_corpus_is_found_by_its_fingerprint(tmp_path, monkeypatch, corpus_directory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fingerprint = open_corpus(corpus_directory).fingerprint
    assert cached_docs_corpus([fingerprint]) is None  # there is no cache
    cache = tmp_path / "bert_jax"
    (cache / "docs-0").mkdir(parents=True)  # what a kill leaves
    (cache / "docs-1.lock").touch()
    shutil.copytree(corpus_directory, cache / "docs-2")
    assert cached_docs_corpus([fingerprint]) == cache / "docs-2"
    assert cached_docs_corpus(["another"]) is None


@pytest.mark.parametrize("code, raised", [(130, Stopped), (-15, Stopped), (2, UserError)])
def test_a_preparation_that_is_stopped_is_no_failure(tmp_path, monkeypatch, code, raised):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code)
    )
    with pytest.raises(raised):
        ensure_docs_corpus(vocabulary_size=100, max_length=32, lowercase=True)
