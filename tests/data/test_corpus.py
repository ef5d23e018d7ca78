"""Preparing a corpus and reading it."""

import collections
import json
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bert_jax.data.corpus import open_corpus
from bert_jax.data.preparation import PrepareOptions, prepare_corpus
from bert_jax.data.smallest_hashes import SmallestHashes
from bert_jax.data.tokenizer import SPECIAL_TOKENS
from bert_jax.errors import UserError

OPTIONS = PrepareOptions(vocabulary_size=200, max_length=16, workers=0, validation_share=0.1)
WORDS = ["the", "a", "cat", "dog", "mat", "sat", "ran", "sees", "on", "under", "green", "tree"]


def sentence(generator):
    return " ".join(generator.choice(WORDS, generator.integers(1, 12))).capitalize() + "."


@pytest.fixture(scope="module")
def texts():
    """40 documents, of which two are the same."""
    generator = np.random.default_rng(0)
    every = [
        " ".join(sentence(generator) for _ in range(generator.integers(1, 15))) for _ in range(39)
    ]
    return [*every, every[7]]


@pytest.fixture(scope="module")
def inputs(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [str(path)]


@pytest.fixture(scope="module")
def corpus(inputs, tmp_path_factory):
    return prepare_corpus(inputs, tmp_path_factory.mktemp("corpus") / "c", OPTIONS)


def documents_of(corpus, name):
    """Document number -> its token ids, from chunks in any order; chunks stay whole."""
    split = corpus.split(name)
    chunks = split.read(np.arange(len(split)))
    found = collections.defaultdict(list)
    for c, document in enumerate(split.documents.tolist()):
        start, end = chunks.token_offsets[c : c + 2]
        found[document].append(tuple(chunks.token_ids[start:end].tolist()))
    return found


def test_every_token_of_every_document_is_in_one_split(corpus, texts):
    train, validation = documents_of(corpus, "train"), documents_of(corpus, "validation")
    assert not train.keys() & validation.keys()
    assert sorted([*train, *validation]) == list(range(40))
    for number, text in enumerate(texts):
        ids = corpus.tokenizer.encode_batch([text])[0]
        chunks = train.get(number) or validation[number]
        lost = len(ids) - sum(map(len, chunks))
        assert lost in (0, 1)
        counted = collections.Counter(i for chunk in chunks for i in chunk)
        assert sum((collections.Counter(ids) - counted).values()) == lost


def test_the_validation_split_has_its_share_of_documents(corpus):
    assert corpus.counts["validation"]["documents"] in (4, 5)  # 5: the equal ones are among them
    assert corpus.counts["train"]["documents"] + corpus.counts["validation"]["documents"] == 40


def test_equal_documents_are_in_the_same_split(corpus):
    train = documents_of(corpus, "train")
    assert (7 in train) == (39 in train)


def test_reading_gives_the_records_asked_for(corpus):
    split = corpus.split("train")
    everything = split.read(np.arange(len(split)))
    numbers = np.array([5, 0, len(split) - 1, 5])
    some = split.read(numbers)
    assert len(some.token_offsets) == len(some.sentence_offsets) == 5
    for i, number in enumerate(numbers):
        ours = some.token_ids[some.token_offsets[i] : some.token_offsets[i + 1]]
        first, last = everything.token_offsets[number : number + 2]
        np.testing.assert_array_equal(ours, everything.token_ids[first:last])
        ends = some.sentence_ends[some.sentence_offsets[i] : some.sentence_offsets[i + 1]]
        begin, stop = everything.sentence_offsets[number : number + 2]
        np.testing.assert_array_equal(
            ends - some.token_offsets[i], everything.sentence_ends[begin:stop] - first
        )
    np.testing.assert_array_equal(np.diff(everything.token_offsets), split.lengths)
    assert split.lengths.max() == 14
    assert split.lengths.min() >= 2
    empty = split.read(np.array([], int))
    assert (len(empty.token_ids), empty.token_offsets.tolist()) == (0, [0])
    for wrong in (-1, len(split)):
        with pytest.raises(IndexError):
            split.read(np.array([wrong]))


def test_counts_are_those_of_the_records(corpus, texts):
    split = corpus.split("train")
    chunks = split.read(np.arange(len(split)))
    counts = corpus.counts["train"]
    assert counts["chunks"] == len(split)
    assert counts["tokens"] == len(chunks.token_ids) == split.lengths.sum()
    assert counts["sentences"] == len(chunks.sentence_ends)
    assert counts["documents"] == len(set(split.documents.tolist()))
    sentences = np.bincount(split.documents, np.diff(chunks.sentence_offsets))
    assert counts["one_sentence_documents"] == (sentences == 1).sum()
    expected = np.bincount(chunks.token_ids, minlength=corpus.tokenizer.size)
    np.testing.assert_array_equal(corpus.unigram_counts, expected)
    (source,) = corpus.sources
    assert source["documents"] == 40
    assert source["text_bytes"] == corpus.metadata["text_bytes"] == sum(map(len, texts))
    assert corpus.max_length == 16
    assert corpus.metadata["tokenizer_hash"] == corpus.tokenizer.hash
    assert corpus.tokenizer.size <= 200


def test_tfds_opens_it(corpus):
    builder = tfds.builder_from_directory(corpus.directory / "bert_corpus" / "1.0.0")
    assert builder.info.metadata["fingerprint"] == corpus.fingerprint
    assert builder.info.splits["train"].num_examples == len(corpus.split("train"))
    record = builder.as_data_source("train")[3]["chunk"]
    chunks = corpus.split("train").read(np.array([3]))
    np.testing.assert_array_equal(record[-len(chunks.token_ids) :], chunks.token_ids)
    assert record[0] == corpus.split("train").documents[3]
    assert not (corpus.directory / "spool").exists()


def test_it_does_not_depend_on_workers_or_on_when_it_is_made(corpus, inputs, tmp_path):
    options = PrepareOptions(vocabulary_size=200, max_length=16, workers=2, validation_share=0.1)
    again = prepare_corpus(inputs, tmp_path / "again", options)
    assert again.fingerprint == corpus.fingerprint
    assert again.tokenizer.hash == corpus.tokenizer.hash
    for name in ("train", "validation"):
        np.testing.assert_array_equal(again.split(name).documents, corpus.split(name).documents)


@pytest.mark.parametrize("change", [{"max_length": 17}, {"validation_share": 0.3}])
def test_the_fingerprint_depends_on_what_decides_the_records(corpus, inputs, tmp_path, change):
    options = PrepareOptions(
        vocabulary=str(corpus.directory),
        **{"max_length": 16, "workers": 0, "validation_share": 0.1, **change},
    )
    other = prepare_corpus(inputs, tmp_path / "other", options)
    assert other.tokenizer.hash == corpus.tokenizer.hash
    assert other.fingerprint != corpus.fingerprint


def test_it_can_be_pickled(corpus):
    for again in (pickle.loads(pickle.dumps(corpus)), open_corpus(corpus.directory)):
        assert again.fingerprint == corpus.fingerprint
    split = pickle.loads(pickle.dumps(corpus.split("train")))
    numbers = np.array([4, 2])
    for ours, theirs in zip(split.read(numbers), corpus.split("train").read(numbers), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_document_makes_no_validation_split(tmp_path):
    (tmp_path / "a.txt").write_text("The cat sat. The dog ran.")
    corpus = prepare_corpus([str(tmp_path / "a.txt")], tmp_path / "c", OPTIONS)
    assert corpus.counts.keys() == {"train"}
    with pytest.raises(UserError, match="has no validation split"):
        corpus.split("validation")


def test_documents_of_no_record_are_not_drawn_for_validation(tmp_path):
    for number in range(90):  # one token each, as titles between chapters may be
        (tmp_path / f"{number}.txt").write_text(chr(0x4E00 + number))
    for name in ("cat", "dog", "tree"):
        (tmp_path / f"{name}.txt").write_text(f"The {name} sat. The dog ran.")
    corpus = prepare_corpus([str(tmp_path / "*.txt")], tmp_path / "c", OPTIONS)
    assert corpus.counts["validation"]["documents"] > 0
    assert sum(counts["documents"] for counts in corpus.counts.values()) == 3


def test_large_vocabularies(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    filler = [f"[unused{i}]" for i in range(70_000)]
    vocabulary.write_text("\n".join([*SPECIAL_TOKENS, *filler, "cat", "dog"]))
    (tmp_path / "a.txt").write_text("cat dog cat")
    options = PrepareOptions(vocabulary=str(vocabulary), max_length=16, workers=0)
    corpus = prepare_corpus([str(tmp_path / "a.txt")], tmp_path / "c", options)
    ids = corpus.split("train").read(np.array([0])).token_ids
    assert ids.tolist() == [70_005, 70_006, 70_005]


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "foreign", "shard", "half", "metadata", "sidecar"]
)
def test_what_is_no_whole_corpus_is_refused(corpus, tmp_path, damage):
    directory = tmp_path / "c"
    if damage == "empty":
        directory.mkdir()
    elif damage == "foreign":
        shutil.copytree(corpus.directory, directory)
        (directory / "bert_corpus/1.0.0/metadata.json").write_text("{}")
    elif damage == "half":
        shutil.copytree(corpus.directory, directory)
        for path in (directory / "bert_corpus/1.0.0").glob("*train.array*"):
            path.write_bytes(path.read_bytes()[:40_000])
    elif damage != "missing":
        shutil.copytree(corpus.directory, directory)
        pattern = {"shard": "*train.array*", "metadata": "meta*", "sidecar": "*lengths.npy"}[damage]
        for path in (directory / "bert_corpus/1.0.0").glob(pattern):
            path.unlink()
    with pytest.raises(UserError, match=r"python -m bert_jax\.prepare") as caught:
        open_corpus(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_records_that_are_damaged_later_are_told(corpus, monkeypatch):
    split = corpus.split("train")

    def broken(numbers):
        raise RuntimeError("Corrupted records\nand more")

    monkeypatch.setattr(split._source, "__getitems__", broken, raising=False)
    message = r"is damaged \(RuntimeError: Corrupted records\); copy it again$"
    with pytest.raises(UserError, match=message):
        split.read(np.array([0]))


def test_a_corpus_of_another_format_is_refused(corpus, tmp_path):
    directory = tmp_path / "c"
    shutil.copytree(corpus.directory, directory)
    path = directory / "bert_corpus/1.0.0/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(UserError, match="has format 99"):
        open_corpus(directory)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(2, 0.01, 1), (3, 0.01, 1), (100, 0.01, 2), (100, 0.25, 25), (3, 0.9, 2), (5000, 0.01, 50)],
)
def test_the_validation_split_of_small_corpora_is_exact(count, share, expected):
    generator = np.random.default_rng(1)
    numbers = generator.integers(0, 2**64, count, np.uint64).tolist()
    smallest = SmallestHashes(1001)
    for number in numbers + numbers[:2]:
        smallest.add(number)
    last = smallest.last_validation_hash(count, share)
    assert last is not None
    assert sum(number <= last for number in numbers) == expected


def test_the_validation_split_of_large_corpora_is_about_its_share():
    numbers = np.random.default_rng(2).integers(0, 2**64, 20_000, np.uint64).tolist()
    smallest = SmallestHashes(1001)
    for number in numbers:
        smallest.add(number)
    last = smallest.last_validation_hash(len(numbers), 0.2)
    assert last is not None
    assert sum(number <= last for number in numbers) == pytest.approx(4000, rel=0.1)
    assert smallest.last_validation_hash(len(numbers), 0.0) is None
