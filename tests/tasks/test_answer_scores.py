"""Exact match and F1: derived by hand from the official scripts, and against another library."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.questions import Question, read_questions
from bert_jax.errors import UserError
from bert_jax.tasks.answer_scores import (
    exact_match,
    normalize_answer,
    score_v1,
    score_v2,
    word_f1,
)


def asked(*answers, id="q"):
    return Question(id, "", "", answers, (0,) * len(answers))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's\thouse, an A-frame!", "cats house aframe"),
        ("theatre of THE U.S.A.", "theatre of usa"),
        ("a.the", "athe"),  # punctuation goes first
        ("“quoted” – dash", "“quoted” – dash"),  # only ASCII's
        ("the-a", "thea"),
        ("\u00a0the \u2003", ""),
    ],
)
def test_normal_form(text, normal):
    assert normalize_answer(text) == normal


def test_words_shared():
    assert word_f1("the big big cat", "big cat sat big on big") == 2 * 1.0 * 0.5 / 1.5
    assert word_f1("a", "the") == 0 and exact_match("a", "the") == 1
    assert word_f1("cat", "dog") == 0


def test_version_1_by_hand():
    questions = [
        asked("Denver Broncos", "the Broncos", id="a"),
        asked("the", id="b"),
        asked("x", id="c"),
        asked("x y z", "w", id="d"),
    ]
    predictions = {"a": "broncos!", "b": "a", "d": "x w"}
    # a: 1, 1. b: both without words: exact, but no word shared. c: missing. d: 2 (1/2)(1) / (3/2).
    assert score_v1(questions, predictions) == {
        "exact_match": 50.0,
        "f1": 100.0 * (1.0 + 2 * 0.5 * 1.0 / 1.5) / 4,
    }


def test_version_2_by_hand():
    questions = [
        asked("the", id="a"),  # a gold answer without words counts as none
        asked("x y", id="b"),
        asked(id="c"),
        asked(id="d"),
        asked("x", id="e"),
    ]
    predictions = {"a": "", "b": "x", "c": "", "d": "x", "e": "x"}
    plain = {
        "exact": 60.0,
        "f1": 100.0 * (1 + 2 * 1.0 * 0.5 / 1.5 + 1 + 0 + 1) / 5,
        "total": 5,
        "HasAns_exact": 100.0 * 2 / 3,
        "HasAns_f1": 100.0 * (1 + 2 * 1.0 * 0.5 / 1.5 + 1) / 3,
        "HasAns_total": 3,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }
    assert score_v2(questions, predictions) == plain
    scores = {"a": 5.0, "b": 1.0, "c": -1.0, "d": 2.0, "e": 0.5}
    found = score_v2(questions, predictions, scores, threshold=1.5)
    # Answered: b, c, e. Empty: d, which is right, and a, which has answers and so is wrong.
    assert found == plain | {
        "exact": 60.0,
        "f1": 100.0 * (0 + 2 * 1.0 * 0.5 / 1.5 + 1 + 1 + 1) / 5,
        "HasAns_exact": 100.0 * 1 / 3,
        "HasAns_f1": 100.0 * (2 * 1.0 * 0.5 / 1.5 + 1) / 3,
        "NoAns_exact": 100.0,
        "NoAns_f1": 100.0,
        # From 2 right: c 0, e +1, b +0 (F1 +2/3), d -1, a +1.
        "best_exact": 60.0,
        "best_exact_thresh": 0.5,
        "best_f1": 100.0 * (3 + 2 * 1.0 * 0.5 / 1.5) / 5,
        "best_f1_thresh": 1.0,
    }


def test_a_group_without_questions_is_not_scored():
    assert set(score_v2([asked("x")], {"q": "x"})) == {
        *("exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total")
    }
    with pytest.raises(UserError, match="there is no answer to question q"):
        score_v2([asked("x")], {})


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["", "x", "y", "x z"]), st.floats(-9, 9)),
        min_size=1,
        unique_by=lambda row: row[2],
    )
)
def test_no_threshold_is_better_than_the_best(rows):
    questions = [
        asked(*(["x"] if answered else []), id=str(i)) for i, (answered, _, _) in enumerate(rows)
    ]
    predictions = {str(i): text for i, (_, text, _) in enumerate(rows)}
    scores = {str(i): score for i, (_, _, score) in enumerate(rows)}
    best = score_v2(questions, predictions, scores)
    reached = [
        score_v2(questions, predictions, scores, threshold)
        for threshold in (-10.0, *scores.values())
    ]
    for name in ("exact", "f1"):
        assert best[f"best_{name}"] == pytest.approx(max(result[name] for result in reached))


def assert_another_implementation_agrees(questions, predictions):
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    theirs = squad(
        [{"prediction_text": text, "id": id} for id, text in predictions.items()],
        [
            {"answers": {"answer_start": [0], "text": list(question.answers)}, "id": question.id}
            for question in questions
        ],
    )
    ours = score_v1(questions, predictions)
    assert ours["exact_match"] == pytest.approx(float(theirs["exact_match"]), rel=1e-5)
    assert ours["f1"] == pytest.approx(float(theirs["f1"]), rel=1e-5)


def test_another_implementation_agrees():
    random_source = random.Random(0)
    words = ["The", "cat's", "a", "mat,", "an", "hat.", "THE", "(it)", "CAT", "mat!", "–", "é"]

    def text() -> str:
        # With a word, for texts without any are where that implementation is not the official one.
        return " ".join(["It", *random_source.choices(words, k=random_source.randrange(6))])

    questions = [
        asked(*(text() for _ in range(random_source.randint(1, 4))), id=str(i)) for i in range(300)
    ]
    assert_another_implementation_agrees(questions, {q.id: text() for q in questions})


def test_another_implementation_agrees_on_real_questions(real_data):
    random_source = random.Random(0)
    questions = [
        question
        for question in read_questions(real_data / "qa/dev-v1.1.json.xz")[:2000]
        if all(map(normalize_answer, question.answers))
    ]

    def guess(question: Question) -> str:
        answer = random_source.choice(question.answers)
        words = question.context.split(" ")
        start = random_source.randrange(len(words))
        return random_source.choice(
            [answer, f"The {answer.upper()}!", f"{answer} {words[start]}", words[start], ""]
        )

    assert_another_implementation_agrees(questions, {q.id: guess(q) for q in questions})
