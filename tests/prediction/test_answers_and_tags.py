"""Answers and tags of any number of texts, as the commands print them."""

import argparse
import json

import jax
import numpy as np
import pytest

from bert_jax.data.question_windows import make_windows
from bert_jax.data.questions import Question
from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.prediction.answers import ANSWER, answer_options, answer_stream
from bert_jax.prediction.command import add_common_flags
from bert_jax.prediction.tags import TAG, Words, entities_of, tag_stream
from bert_jax.pretrained import Pretrained
from bert_jax.tasks.answers import AnswerOptions, answer_questions
from bert_jax.training.sharding import unbox

VOCABULARY = ("ann", "##e", "bob", "ran", "who", "to", "rome", "?", ".")
TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, *VOCABULARY], lowercase=True)
CONFIG = BertConfig(
    vocabulary_size=TOKENIZER.size,
    layers=1,
    width=16,
    heads=2,
    feed_forward_width=32,
    max_positions=24,
    initializer_stddev=0.5,  # so that texts differ
)
CONTEXTS = ["Anne ran to Rome.", "bob ran " * 15, "", "Who? Ann.", "to " * 19]
OPTIONS = {"stride": 5, "max_question_length": 4, "max_answer_length": 6, "candidates": 7}


def make_model(head, labels=(), **options):
    description = ModelDescription(CONFIG, head, labels, max_length=24, options=options)
    params = jax.jit(lambda key: unbox(description.initialise(key)))(jax.random.key(0))
    return Pretrained(description, params, TOKENIZER)


@pytest.fixture(scope="module")
def reader():
    return make_model(Head.QUESTION_ANSWERING, **OPTIONS)


@pytest.fixture(scope="module")
def tagger():
    return make_model(Head.TAGGING, ("O", "B-PER", "I-PER", "B-LOC"))


@pytest.fixture
def run(capsys):
    """The lines that a command prints for a model; those of --json as objects."""

    def run(command, model, *arguments):
        parser = argparse.ArgumentParser()
        add_common_flags(parser)
        command.add_flags(parser)
        command.run(model, parser.parse_args(["--checkpoint", "x", *map(str, arguments)]))
        lines = capsys.readouterr().out.splitlines()
        return [json.loads(line) for line in lines] if "--json" in arguments else lines

    return run


def outputs_of(model, inputs):
    """What the model gives for a batch."""
    apply = jax.jit(lambda params: model.model.apply(params, *inputs, deterministic=True))
    return np.asarray(apply({"params": model.params}))


def test_answers_come_from_all_windows_in_the_order_of_the_questions(reader):
    questions = [Question("", context, "Who ran?") for context in CONTEXTS]
    windows = make_windows(questions, TOKENIZER, max_length=24, stride=5, max_question_length=4)
    batch = windows.rows(np.arange(len(windows)), 24)
    scores = outputs_of(reader, (batch["token_ids"], batch["segment_ids"], batch["lengths"]))
    options = AnswerOptions(max_answer_length=6, candidates=7)
    assert answer_options(reader) == options
    expected = answer_questions(questions, windows, scores[..., 0], scores[..., 1], options)
    found = list(answer_stream(reader, iter(questions), batch_size=4))
    assert [question for question, _ in found] == questions
    for (question, prediction), single in zip(found, expected, strict=True):
        assert prediction.text == single.text
        assert prediction.text in question.context
        assert len(prediction.candidates) == len(single.candidates) <= 7
        assert [c.probability for c in prediction.candidates] == pytest.approx(
            [c.probability for c in single.candidates], abs=1e-4
        )


def test_answers_are_printed(reader, run, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"id": f"q{n}", "question": "Who?", "context": text} for n, text in enumerate(CONTEXTS)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = run(ANSWER, reader, "--input", path, "--json", "--top", 2)
    assert [row["id"] for row in found] == ["q0", "q1", "q2", "q3", "q4"]
    assert all(len(row["candidates"]) <= 2 for row in found)
    assert all(row["prediction"] in text for row, text in zip(found, CONTEXTS, strict=True))
    assert found[2]["prediction"] == ""
    [same] = run(ANSWER, reader, f"Who?\t{CONTEXTS[0]}", "--json", "--top", 2)
    [also] = run(ANSWER, reader, "Who?", "--context", CONTEXTS[0], "--json", "--top", 2)
    assert same == also
    assert same["prediction"] == found[0]["prediction"] and same["question"] == "Who?"
    texts = [[c["text"] for c in row["candidates"]] for row in (same, found[0])]
    assert texts[0] == texts[1]
    lines = run(ANSWER, reader, f"Who?\t{CONTEXTS[0]}", "--top", 2)
    best = found[0]["candidates"][0]
    assert lines[:2] == ["Who?", f"  {best['probability']:6.1%}  {best['text']}"]
    assert len(lines) == 3


def test_the_threshold_of_no_answer_may_be_given(reader, run):
    asked = [f"Who?\t{CONTEXTS[0]}", "--json"]
    [sure] = run(ANSWER, reader, *asked, "--no_answer_threshold", -1000)
    assert sure["prediction"] == sure["candidates"][0]["text"] == ""
    [unsure] = run(ANSWER, reader, *asked, "--no_answer_threshold", 1000)
    assert unsure["prediction"] == unsure["candidates"][0]["text"] != ""
    assert unsure["no_answer_score"] == sure["no_answer_score"] != 0
    lines = run(ANSWER, reader, *asked[:1], "--no_answer_threshold", -1000)
    assert lines[1].endswith("%  (no answer)")
    # Without any token there is no best span to beat; JSON has no infinite numbers.
    [empty] = run(ANSWER, reader, "Who?\t", "--json", "--no_answer_threshold", 0)
    assert empty["no_answer_score"] is None


def test_words_are_tagged_as_their_windows_would_be(tagger):
    texts = [Words.of_text(text) for text in CONTEXTS]
    found = list(tag_stream(tagger, iter(texts), batch_size=3))
    assert [text for text, _ in found] == texts
    assert [len(tags) for _, tags in found] == [5, 30, 0, 4, 19]
    assert len({tag for _, tags in found for tag in tags}) > 1
    ids = [[2, *TOKENIZER.encode_batch([text])[0], 3] for text in (CONTEXTS[0], CONTEXTS[3])]
    for tags, row in zip((found[0][1], found[3][1]), ids, strict=True):
        inputs = (np.array([row]), np.zeros((1, len(row)), int), np.array([len(row)]))
        scores = outputs_of(tagger, inputs)[0]
        labels = [tagger.description.labels[i] for i in scores.argmax(axis=-1)]
        first_tokens = [i for i, token in enumerate(row) if i and token not in (3, 6)]  # 6: ##e
        assert tags == [labels[column] for column in first_tokens]


def test_tags_are_printed(tagger, run, tmp_path):
    path = tmp_path / "words.jsonl"
    words = ["Anne", "ran", "to", "Rome", "."]
    path.write_text(json.dumps({"tokens": words}))
    [listed] = run(TAG, tagger, "--input", path, "--text", "tokens", "--json")
    [split] = run(TAG, tagger, CONTEXTS[0], "--json")
    assert listed["words"] == split["words"] == words
    assert listed["prediction"] == split["prediction"]
    assert listed["text"] == "Anne ran to Rome ." and split["text"] == CONTEXTS[0]
    for row in (listed, split):
        for entity in row["entities"]:
            assert row["text"][entity["start"] : entity["end"]] == entity["text"]
    lines = run(TAG, tagger, CONTEXTS[0])
    assert lines[0] == CONTEXTS[0]
    assert [line.split()[1:] for line in lines[1:]] == [
        entity["text"].split() for entity in split["entities"]
    ]


def test_entities_are_pieces_of_the_text():
    text = Words.of_text("Ann  Lee, of Rome")
    assert text.words == ("Ann", "Lee", ",", "of", "Rome")
    labels = ["O", "B-PER", "I-PER", "I-LOC"]
    entities = entities_of(text, ["B-PER", "I-PER", "O", "O", "I-LOC"], labels)
    assert [tuple(entity) for entity in entities] == [
        ("PER", "Ann  Lee", 0, 8),
        ("LOC", "Rome", 13, 17),
    ]


def test_tags_of_no_entities_are_those_of_words():
    tags = ["NOUN", "NOUN", "PUNCT", "O", "I", "NOUN"]  # O: of a word that has no tokens
    words = entities_of(Words.of_text("Ann  Lee, \u200b of Rome"), tags, ["NOUN", "PUNCT", "I"])
    assert [(word.type, word.text) for word in words] == [
        *(("NOUN", "Ann"), ("NOUN", "Lee"), ("PUNCT", ","), ("I", "of"), ("NOUN", "Rome")),
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["Who?"], "text 1 is not QUESTION, a tab, CONTEXT"),
        (["Who?\tAnn", "--context", "Bob"], "with --context, a question alone"),
        (["Who?", "--context", "Ann \udcff"], "--context is not UTF-8; write each"),
        (["Who?\tAnn", "--output", "a.jsonl.gz"], "a.jsonl.gz would be plain text"),
        (["Who?\tAnn", "--output", "a.npy"], "a.npy would be plain text"),
        (["Who?\tAnn", "--top", "0"], "--top 0 must be at least 1"),
        (["Who?\tAnn", "--batch_size", "0"], "batch_size is 0; give a whole number of at least 1"),
    ],
)
def test_mistakes_are_told_in_one_sentence(reader, run, arguments, message):
    with pytest.raises(UserError, match=message):
        run(ANSWER, reader, *arguments)


def test_rows_that_do_not_fit_are_told_with_their_place(reader, tagger, run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Who?"}')
    with pytest.raises(UserError, match=r"line 1 has no column 'context'; .* with --text"):
        run(ANSWER, reader, "--input", path)
    path.write_text('{"text": ["a", 3]}')
    with pytest.raises(UserError, match=r"line 1 has \['a', 3\] in the column 'text'"):
        run(TAG, tagger, "--input", path)
