"""Rows of TFDS data sets: TFDS's own builders prepare small files."""

import json

import pytest
import tensorflow_datasets as tfds

from bert_jax.data.questions import Question, read_tfds_questions
from bert_jax.data.tables import read_tfds_table
from bert_jax.data.tagged_sentences import Sentence, read_tfds_sentences
from bert_jax.data.tfds_rows import TfdsRows
from bert_jax.errors import UserError

CONTEXT = "Ann saw Bö."
ANSWERED = {
    "id": "1",
    "question": "Who?",
    "is_impossible": False,
    "answers": [{"text": "Bö", "answer_start": 8}, {"text": "Ann", "answer_start": 0}],
}
IMPOSSIBLE = {"id": "2", "question": "Why?", "is_impossible": True, "answers": []}
CONLL = "-DOCSTART- -X- -X- O\n\nAnn NNP B-NP B-PER\nran VBD B-VP O\n\nBö NNP B-NP B-LOC\n\n"


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """Where TFDS finds what it would have to fetch."""

    def fetch(manager, urls):
        if not isinstance(urls, dict):
            return tmp_path
        return {split: tmp_path / f"{split}.json" for split in urls}

    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(CONLL, encoding="utf-8")
    for name, questions in (("train", [ANSWERED]), ("dev", [ANSWERED, IMPOSSIBLE])):
        paragraph = {"context": CONTEXT, "qas": questions}
        squad = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph]}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(squad))
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fetch)
    return str(tmp_path / "tfds")


def test_squad(data_dir):
    answered = Question("1", CONTEXT, "Who?", ("Bö", "Ann"), (8, 0), "t")
    assert read_tfds_questions("squad", "train", data_dir=data_dir) == [answered]
    found = read_tfds_questions("squad/v2.0", "validation", data_dir=data_dir)
    assert sorted(found, key=lambda question: question.id) == [
        answered,
        Question("2", CONTEXT, "Why?", title="t"),
    ]


def test_conll2003(data_dir):
    sentences = read_tfds_sentences("conll2003", "dev", data_dir=data_dir)
    named = [Sentence(("Ann", "ran"), ("B-PER", "O")), Sentence(("Bö",), ("B-LOC",))]
    expected = [Sentence((), ()), *named]
    assert sorted(sentences, key=lambda sentence: sentence.words) == expected
    chunks = read_tfds_sentences("conll2003", "test", tags="chunks", data_dir=data_dir)
    assert sorted(sentence.tags for sentence in chunks) == [(), ("B-NP",), ("B-NP", "B-VP")]
    with pytest.raises(UserError, match=r"conll2003, dev has 'NNP', which is no entity tag"):
        read_tfds_sentences("conll2003", "dev", tags="pos", data_dir=data_dir)


def test_a_sequence_of_one_is_a_sequence(data_dir):
    table = read_tfds_table("conll2003", "dev", ["tokens", "ner"], data_dir=data_dir)
    assert sorted(table.columns["tokens"]) == [[], ["Ann", "ran"], ["Bö"]]
    assert sorted(table.columns["ner"]) == [[], [1, 0], [5]]
    squad = read_tfds_table("squad", "train", ["question", "answers/text"], data_dir=data_dir)
    assert squad.columns == {"question": ["Who?"], "answers/text": [["Bö", "Ann"]]}


def test_what_a_data_set_has_not(data_dir):
    rows = TfdsRows("conll2003", "dev", data_dir)
    assert len(rows) == 3  # the builder ends with an empty sentence, which is passed over
    assert "ner" in rows and "ner/tag" not in rows and "tags" not in rows
    assert rows.class_names("ner")[:2] == ("O", "B-PER")
    assert rows.class_names("tokens") == ()
    with pytest.raises(UserError, match="conll2003 has no column 'tags'; its columns are .*ner"):
        list(rows.read("tags"))
    with pytest.raises(UserError, match="conll2003/1.0.0 has no split 'validation' .* choose one"):
        TfdsRows("conll2003", "validation", data_dir)
    with pytest.raises(UserError, match="TFDS has no data set 'no_such_data_set'"):
        TfdsRows("no_such_data_set", "train", data_dir)
