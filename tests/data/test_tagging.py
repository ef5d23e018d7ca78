"""Tagged sentences from files, and the windows in which each word counts once."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.tag_windows import make_tag_windows
from bert_jax.data.tagged_sentences import (
    Sentence,
    label_names,
    read_conll_sentences,
    read_json_sentences,
    read_sentences,
    split_words,
)
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.tasks.tag_scores import score_entities

SENTENCES = [
    Sentence(("Ann", "saw", "New", "York", "."), ("B-PER", "O", "B-LOC", "I-LOC", "O")),
    Sentence(("Bö\u00a0x", "\u2028"), ("O", "B-creative-work")),
]
NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "B-creative-work")


@pytest.fixture(scope="module", params=["uncased", "cased"])
def tokenizer(request):
    text = ["Ann saw New York. Yorkshire annoys Bö x 1 2 3"] * 3
    return WordPieceTokenizer.train(text, size=60, lowercase=request.param == "uncased")


def test_json(tmp_path):
    rows = [{"tokens": s.words, "ner_tags": s.tags} for s in SENTENCES]
    rows.insert(1, {"tokens": [], "ner_tags": []})
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    read = [SENTENCES[0], Sentence((), ()), *SENTENCES[1:]]
    assert read_json_sentences(path) == read_sentences(path) == read
    numbered = tmp_path / "b.json"
    numbered.write_text(
        "\n".join(
            json.dumps({"w": s.words, "t": [NAMES.index(tag) for tag in s.tags], "other": 1})
            for s in SENTENCES
        )
    )
    assert read_sentences(numbered, tokens="w", tags="t", names=NAMES) == SENTENCES
    assert label_names(SENTENCES) == NAMES


@pytest.mark.parametrize("separator", [" ", "   ", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll(tmp_path, separator, end):
    lines = ["-DOCSTART- -X- O", "", ""]
    for sentence in SENTENCES:
        lines += [
            separator.join([tag, "NN", word])
            for word, tag in zip(sentence.words, sentence.tags, strict=True)
        ]
        lines.append(" \t" if sentence is SENTENCES[0] else "-DOCSTART-")
    path = tmp_path / "a.conll"
    path.write_bytes(end.join(lines).encode())
    assert read_conll_sentences(path, token_column=2, tag_column=0) == SENTENCES
    assert read_sentences(path, tokens=-1, tags=-3) == SENTENCES
    path.write_bytes(end.join(lines[:-1]).encode())  # the last sentence ends with the file
    assert read_conll_sentences(path, token_column=2, tag_column=0) == SENTENCES


# A byte order mark in front of the first word would be the file's.
SEPARATORS = "\n\r\t \ufeff"
WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SEPARATORS), min_size=1)
TAG = st.sampled_from(["O", "B-a", "I-a", "E-b-c", "S-é", "B"])


@given(
    st.lists(
        st.lists(st.tuples(WORD.filter(lambda word: not word.startswith("-DOCSTART-")), TAG)),
    ).map(lambda sentences: [s for s in sentences if s])
)
def test_what_is_written_is_read(tmp_path_factory, sentences):
    directory = tmp_path_factory.mktemp("sentences")
    expected = [Sentence(*zip(*pairs, strict=True)) for pairs in sentences]
    blocks = ["".join(f"{word}\t{tag}\n" for word, tag in pairs) for pairs in sentences]
    (directory / "a.tsv").write_bytes("\n".join(blocks).encode())
    assert read_sentences(directory / "a.tsv") == expected
    rows = [json.dumps({"tokens": s.words, "ner_tags": s.tags}) for s in expected]
    (directory / "a.jsonl").write_text("\n".join(rows))
    assert read_sentences(directory / "a.jsonl") == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["a"], "ner_tags": []}, "line 2 has 1 words and 0 tags; give each word one"),
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "line 2 has 2 words and 1 tags"),
        ({"tokens": ["a"]}, "line 2 has no list 'ner_tags'; its keys are tokens"),
        ({"tokens": "a", "ner_tags": ["O"]}, "line 2 has no list 'tokens'"),
        ({"tokens": [1], "ner_tags": ["O"]}, "line 2 has words in 'tokens' that are no texts"),
        ({"tokens": ["a"], "ner_tags": ["NN"]}, "line 2 has 'NN', which is no entity tag"),
        ({"tokens": ["a"], "ner_tags": ["B-"]}, "line 2 has 'B-', which is no entity tag"),
        ({"tokens": ["a"], "ner_tags": [None]}, "line 2 has None, which is no entity tag"),
        ({"tokens": ["a"], "ner_tags": [2]}, "line 2 has the tag 2, but 2 names are known"),
        ({"tokens": ["a"], "ner_tags": [-1]}, "line 2 has the tag -1, but 2 names are known"),
    ],
)
def test_rows_that_are_not_right(tmp_path, row, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"tokens": ["a"], "ner_tags": [0]}}\n{json.dumps(row)}')
    with pytest.raises(UserError, match=reason) as caught:
        read_json_sentences(path, names=("O", "B"))
    assert str(path) in str(caught.value)


def test_numbers_need_names(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": ["a"], "ner_tags": [0]}')
    with pytest.raises(UserError, match="has the tag 0, but no names are given for tags"):
        read_json_sentences(path)


@pytest.mark.parametrize(
    ("lines", "columns", "reason"),
    [
        ("a O\nb x O", {}, "line 2 has 3 columns, and the lines before have 2"),
        ("a O\nb", {}, "line 2 has 1 columns, and the lines before have 2"),
        ("a O", {"tag_column": 2}, "line 1 has 2 columns, so tag_column=2 is none; .* 0 to 1"),
        ("a O", {"token_column": -3}, "so token_column=-3 is none"),
        ("a O\n\nb NN", {}, "line 3 has 'NN', which is no entity tag"),
    ],
)
def test_lines_that_are_not_right(tmp_path, lines, columns, reason):
    path = tmp_path / "a.conll"
    path.write_text(lines)
    with pytest.raises(UserError, match=f"{path}, {reason}|{reason}"):
        read_conll_sentences(path, **columns)


def test_columns_of_the_wrong_kind(tmp_path):
    with pytest.raises(UserError, match=r"tags=3 names no column .* JSON lines; give a key"):
        read_sentences(tmp_path / "a.jsonl.xz", tags=3)
    with pytest.raises(UserError, match=r"tokens='w' names no column .* columns; give a number"):
        read_sentences(tmp_path / "a.conll", tokens="w")


def test_rows_of_windows(tokenizer):
    sentence = Sentence(("York", "\u200b", "Yorkyork"), ("B-LOC", "O", "I-new"))
    windows = make_tag_windows([sentence], NAMES, tokenizer, max_length=32)
    batch = windows.rows(np.array([0]), 32)
    first, _, last = tokenizer.encode_batch(sentence.words)
    assert len(last) > 1
    ids = [tokenizer.cls_id, *first, *last, tokenizer.sep_id]
    assert batch["lengths"].tolist() == windows.lengths.tolist() == [len(ids)]
    assert batch["token_ids"][0].tolist() == ids + [0] * (32 - len(ids))
    assert not batch["segment_ids"].any()
    # The tag that is no label has no weight; the word without tokens has no place.
    assert np.flatnonzero(batch["label_weights"][0]).tolist() == [1]
    assert batch["labels"][0, 1] == NAMES.index("B-LOC")
    labels = np.full((1, 32), NAMES.index("I-LOC"))
    assert windows.tags(labels, NAMES) == [["I-LOC", "O", "I-LOC"]]
    assert {name: array.dtype for name, array in batch.items()} == {
        "token_ids": np.int32,
        "segment_ids": np.int32,
        "lengths": np.int32,
        "labels": np.int32,
        "label_weights": np.float32,
    }


@settings(max_examples=200)
@given(data=st.data())
def test_every_word_counts_once(tokenizer, data):
    word = st.sampled_from(["Ann", "Yorkshire", "annoys", "\u200b", "New York", "Bö", "1"])
    tag = st.sampled_from([*NAMES])
    sentences = [
        Sentence(*zip(*pairs, strict=True))
        for pairs in data.draw(st.lists(st.lists(st.tuples(word, tag), min_size=1, max_size=12)))
    ]
    max_length = data.draw(st.integers(3, 20))
    windows = make_tag_windows(sentences, NAMES, tokenizer, max_length=max_length)
    batch = windows.rows(np.arange(len(windows)), max_length)
    words = [word for sentence in sentences for word in sentence.words]
    with_tokens = [number for number, word in enumerate(words) if word != "\u200b"]
    assert sorted(windows.words.tolist()) == with_tokens
    assert batch["label_weights"].sum() == len(with_tokens)
    first_ids = {
        word: ids[0] for word, ids in zip(words, tokenizer.encode_batch(words), strict=True) if ids
    }
    for window in range(len(windows)):
        mine = slice(*windows.word_offsets[window : window + 2])
        columns = windows.columns[mine]
        assert np.flatnonzero(batch["label_weights"][window]).tolist() == columns.tolist()
        assert batch["token_ids"][window, columns].tolist() == [
            first_ids[words[number]] for number in windows.words[mine]
        ]
    # What is predicted right comes back, but for words that have no tokens.
    predicted = windows.tags(list(batch["labels"]), NAMES)
    assert predicted == [
        [
            "O" if word == "\u200b" else tag
            for word, tag in zip(sentence.words, sentence.tags, strict=True)
        ]
        for sentence in sentences
    ]


def test_no_room_for_a_sentence(tokenizer):
    with pytest.raises(UserError, match="max_length=2 leaves no room .* at least 3"):
        make_tag_windows(SENTENCES, NAMES, tokenizer, max_length=2)


@pytest.mark.parametrize("vocabulary", ["uncased", "cased"])
def test_real_sentences(real_data, vocabulary):
    tokenizer = WordPieceTokenizer.from_file(real_data / f"vocab/bert-base-{vocabulary}-vocab.txt")
    for split, rows in (("train", 3394), ("validation", 1009), ("test", 1287)):
        sentences = read_sentences(real_data / f"ner/wnut17.{split}.jsonl.xz")
        assert len(sentences) == rows
        names = label_names(sentences)
        assert len(names) == 13
        expected = [list(sentence.tags) for sentence in sentences]
        for max_length in (128, 8):
            windows = make_tag_windows(sentences, names, tokenizer, max_length=max_length)
            labels = windows.rows(np.arange(len(windows)), max_length)["labels"]
            predicted = windows.tags(labels, names)
            assert predicted == expected
            assert score_entities(expected, predicted)[0].f1 == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann's cat (a U.S. one) ran.", "Ann's cat ( a U.S . one ) ran ."),
        ("al-Qaeda, $5!?", "al-Qaeda , $ 5 ! ?"),
        ("我爱Rome。", "我 爱 Rome 。"),
        ("cafe\u0301 हिन्दी", "cafe\u0301 हिन्दी"),
        (" \t\n", ""),
        ("...", ". . ."),
    ],
)
def test_words_of_raw_text(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words.split()


@given(st.text(max_size=30))
def test_words_are_all_of_a_text_but_its_spaces(text):
    spans = split_words(text)
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())
    assert all(start < end for start, end in spans)
    assert spans == sorted(spans)
