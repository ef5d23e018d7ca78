"""The same preparation by Apache Beam."""

import dataclasses
import gzip
import json
import lzma
import os
import pydoc_data.topics
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import bert_jax
from bert_jax.data.beam import BeamRun
from bert_jax.data.preparation import PrepareOptions, prepare_corpus
from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.errors import UserError

pytest.importorskip("apache_beam")

ROOT = Path(bert_jax.__file__).parents[1]
OPTIONS = PrepareOptions(
    vocabulary_size=500,
    vocabulary_megabytes=0.1,  # less than the input has
    max_length=32,
    validation_share=0.2,
    workers=0,
)

TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, "the", "cat"], lowercase=True)


@pytest.fixture(autouse=True)
def workers_find_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Files of every kind, one document twice, and one file twice."""
    directory = tmp_path_factory.mktemp("texts")
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())[:60]]

    def lines(texts):
        return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()

    (directory / "a.txt").write_text(texts[0])
    (directory / "b.jsonl.gz").write_bytes(gzip.compress(lines(texts[1:20])))
    (directory / "c.jsonl").write_bytes(lines(texts[20:30] + texts[:1]))
    (directory / "d.txt").write_text(" \n")
    (directory / "e.txt.xz").write_bytes(lzma.compress(texts[30].encode()))
    (directory / "f.jsonl").write_bytes(lines(texts[31:]))
    return [f"{directory}/[a-c]*", str(directory)]


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    return prepare_corpus(inputs, tmp_path_factory.mktemp("corpus") / "c", OPTIONS)


def contents(corpus):
    """The bytes of every file but the metadata, and the metadata but how long it took."""
    files = {
        path.name: path.read_bytes()
        for path in (corpus.directory / "bert_corpus" / "1.0.0").iterdir()
    }
    metadata = json.loads(files.pop("metadata.json"))
    metadata.pop("seconds")
    return files, metadata


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_corpus_is_that_of_one_process(inputs, expected, tmp_path, workers):
    options = dataclasses.replace(OPTIONS, beam_runner="DirectRunner", workers=workers)
    if workers == 1:  # one pipeline less
        options = dataclasses.replace(options, vocabulary=str(expected.directory))
    corpus = prepare_corpus(inputs, tmp_path / "c", options)
    files, metadata = contents(corpus)
    expected_files, expected_metadata = contents(expected)
    assert metadata == expected_metadata
    assert files.keys() == expected_files.keys()
    assert all(files[name] == expected_files[name] for name in files)
    assert [source["documents"] for source in corpus.sources] == [31, 30]
    assert os.listdir(tmp_path) == ["c"]


def test_shards_beyond_ten_are_in_order(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("bert_jax.data.builder._SHARD_BYTES", 20_000)
    beam = dataclasses.replace(OPTIONS, beam_runner="DirectRunner")
    corpora = [
        prepare_corpus(inputs, tmp_path / name, options)
        for name, options in (("one", OPTIONS), ("beam", beam))
    ]
    first, second = map(contents, corpora)
    assert first == second
    assert sum(name.startswith("bert_corpus-train") for name in first[0]) > 10
    train = corpora[1].split("train")
    chunks = train.read(np.arange(len(train)))
    np.testing.assert_array_equal(np.diff(chunks.token_offsets), train.lengths)


def test_bad_input_gets_the_sentence_of_one_process(inputs, tmp_path):
    texts = tmp_path / "texts"
    shutil.copytree(inputs[1], texts)
    (texts / "c.jsonl").write_bytes(b"no JSON\n" + (texts / "c.jsonl").read_bytes())
    (texts / "b.jsonl.gz").write_bytes(b"\x1f\x8bno archive")
    messages = set()
    for runner in (None, "DirectRunner"):
        options = dataclasses.replace(OPTIONS, beam_runner=runner)
        with pytest.raises(UserError, match=r"b\.jsonl\.gz is a broken \.gz file") as caught:
            prepare_corpus([str(texts)], tmp_path / "out" / "c", options)
        messages.add(str(caught.value))
        assert os.listdir(tmp_path / "out") == []
    assert len(messages) == 1
    skip = dataclasses.replace(OPTIONS, bad_input="skip")
    one = prepare_corpus([str(texts)], tmp_path / "out" / "one", skip)
    beam = dataclasses.replace(skip, beam_runner="DirectRunner")
    other = prepare_corpus([str(texts)], tmp_path / "out" / "other", beam)
    assert contents(one)[1]["skipped"] == 2
    assert contents(one) == contents(other)


def test_input_that_changes_is_noticed(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "The cat sat. It ran."}\n' * 3)
    monkeypatch.setattr(
        "bert_jax.data.preparation.WordPieceTokenizer.train",
        lambda texts, **keywords: file.write_text('{"text": "Another."}\n') and TOKENIZER,
    )
    options = dataclasses.replace(OPTIONS, beam_runner="DirectRunner")
    with pytest.raises(UserError, match=r"changed while it was read \(part 1 of 1\)"):
        prepare_corpus([str(file)], tmp_path / "c", options)


def test_a_worker_that_is_killed_ends_the_preparation():
    run = BeamRun("DirectRunner", [], 1, lambda progress: None)
    with pytest.raises(UserError, match="A worker process was killed.*give fewer --workers"):
        run("dying", os._exit, [3])


def test_beam_without_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    options = dataclasses.replace(OPTIONS, beam_runner="DirectRunner")
    with pytest.raises(UserError, match=r"install it with pip install -e '\.\[beam\]'"):
        prepare_corpus(["docs"], tmp_path / "c", options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam_runner": "FlyingRunner"}, "no runner 'FlyingRunner' here .*choose one of "),
        ({"beam_options": ("direct_num_wrokers=2",)}, "no option 'direct_num_wrokers'"),
        ({"beam_options": ("direct_num_workers=two",)}, "direct_num_workers=two cannot be read"),
        ({}, "docs is what is installed on this machine; prepare it without --beam_runner"),
    ],
)
def test_what_beam_cannot_do_gets_a_sentence(tmp_path, changes, message):
    options = dataclasses.replace(OPTIONS, beam_runner="DirectRunner")
    with pytest.raises(UserError, match=message):
        prepare_corpus(["docs"], tmp_path / "c", dataclasses.replace(options, **changes))
    assert os.listdir(tmp_path) == []
