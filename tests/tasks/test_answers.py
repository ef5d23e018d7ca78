"""Answers from scores: against a search through every span."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.question_windows import make_windows
from bert_jax.data.questions import Question, read_questions
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.tasks.answer_scores import score_v1
from bert_jax.tasks.answers import AnswerOptions, answer_questions

CONTEXT = "The cat sat. The cat ran to Bö, and the dog sat."
LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer.train([f"{CONTEXT} Who?"] * 3, size=120, lowercase=True)


@pytest.fixture(scope="module")
def asked(tokenizer):
    """Questions and their windows: several, one, and one without tokens."""
    questions = [
        Question("a", CONTEXT, "Who sat?", ("dog",), (40,)),
        Question("b", "The dog.", "Who?"),
        Question("c", "\u200b", "Who?"),
    ]
    windows = make_windows(questions, tokenizer, max_length=LENGTH, stride=2, max_question_length=4)
    assert np.bincount(windows.windows.sequences).tolist()[1:] == [1, 1]
    assert len(windows) > 5
    return questions, windows


def every_span(questions, windows, number, start_scores, end_scores, longest):
    """(score, text) of all spans that may be an answer: the rules, in plain loops."""
    question = questions[number]
    mine = np.flatnonzero(windows.windows.sequences == number)
    context = {}  # (window, token of the context): how much context it has there
    for window in mine:
        first, length = windows.windows.starts[window], windows.windows.lengths[window]
        for place in range(length):
            context[window, first + place] = min(place, length - 1 - place) + 0.01 * length
    for window in mine:
        first, length = windows.windows.starts[window], windows.windows.lengths[window]
        for start in range(first, first + length):
            rivals = {w: context[w, start] for w in mine if (w, start) in context}
            if max(rivals, key=rivals.__getitem__) != window:
                continue
            for end in range(start, min(start + longest, first + length)):
                column = windows.context_columns[window] - first
                score = float(start_scores[window][column + start])
                score += float(end_scores[window][column + end])
                token = windows.context_starts[number]
                yield (
                    score,
                    question.context[
                        windows.character_starts[token + start] : windows.character_ends[
                            token + end
                        ]
                    ],
                )


@settings(max_examples=100)
@given(
    seed=st.integers(0, 1000),
    longest=st.integers(1, 14),
    candidates=st.integers(1, 30),
    can_be_impossible=st.booleans(),
    threshold=st.sampled_from([-2.0, 0.0, 2.0]),
)
def test_the_best_spans_are_found(asked, seed, longest, candidates, can_be_impossible, threshold):
    questions, windows = asked
    random = np.random.default_rng(seed)
    start_scores, end_scores = random.normal(size=(2, len(windows), LENGTH)).astype(np.float32)
    options = AnswerOptions(longest, candidates, can_be_impossible, threshold)
    predictions = list(answer_questions(questions, windows, start_scores, end_scores, options))
    assert len(predictions) == len(questions)
    for number, prediction in enumerate(predictions):
        best: dict[str, float] = {}
        for score, text in every_span(
            questions, windows, number, start_scores, end_scores, longest
        ):
            best[text] = max(score, best.get(text, -np.inf))
        ranked = sorted(best.items(), key=lambda item: -item[1])[:candidates]
        mine = windows.windows.sequences == number
        nothing = float((start_scores[mine, 0].astype(float) + end_scores[mine, 0]).min())
        span = ranked[0][0] if ranked else ""
        assert prediction.span_text == span
        if can_be_impossible:
            margin = nothing - ranked[0][1] if ranked else np.inf
            assert prediction.no_answer_score == pytest.approx(margin)
            assert prediction.text == ("" if margin > threshold else span)
        else:
            assert (prediction.text, prediction.no_answer_score) == (span, 0.0)
        if can_be_impossible or not ranked:
            ranked = sorted([*ranked, ("", nothing)], key=lambda item: -item[1])
        assert [answer.text for answer in prediction.candidates] == [text for text, _ in ranked]
        scores = np.array([score for _, score in ranked])
        np.testing.assert_allclose([a.score for a in prediction.candidates], scores)
        odds = np.exp(scores)
        np.testing.assert_allclose(
            [answer.probability for answer in prediction.candidates], odds / odds.sum()
        )
        for answer in prediction.candidates:
            assert questions[number].context.startswith(answer.text, answer.start)


def test_rows_of_several_lengths_and_large_scores(asked):
    questions, windows = asked
    random = np.random.default_rng(0)
    scores = 1000 * random.normal(size=(2, len(windows), LENGTH)).astype(np.float32)
    options = AnswerOptions(can_be_impossible=True)
    whole = list(answer_questions(questions, windows, *scores, options))
    ragged = [
        [row[:length] for row, length in zip(side, windows.lengths, strict=True)] for side in scores
    ]
    assert list(answer_questions(questions, windows, *ragged, options)) == whole
    for prediction in whole:
        assert sum(a.probability for a in prediction.candidates) == pytest.approx(1.0)


def test_a_model_that_knows_the_answer(asked):
    questions, windows = asked
    rows = windows.rows(np.arange(len(windows)), LENGTH)
    row = np.arange(len(windows))
    scores = np.zeros((2, len(windows), LENGTH), np.float32)
    scores[0, row, rows["start_positions"]] = scores[1, row, rows["end_positions"]] = 9
    options = AnswerOptions(can_be_impossible=True)
    predictions = answer_questions(questions, windows, *scores, options)
    assert [prediction.text for prediction in predictions] == ["dog", "", ""]


def test_options_out_of_range():
    for name in ("max_answer_length", "candidates"):
        with pytest.raises(UserError, match=f"{name} is 0; give at least 1"):
            AnswerOptions(**{name: 0})


def test_perfect_scores_on_real_questions(real_data):
    questions = read_questions(real_data / "qa/dev-v1.1.json.xz")[::10]
    vocabulary = real_data / "vocab/bert-base-uncased-vocab.txt"
    windows = make_windows(questions, WordPieceTokenizer.from_file(vocabulary), max_length=384)
    rows = windows.rows(np.arange(len(windows)), 384)
    row = np.arange(len(windows))
    scores = np.zeros((2, len(windows), 384), np.float32)
    scores[0, row, rows["start_positions"]] = scores[1, row, rows["end_positions"]] = 9
    options = AnswerOptions(max_answer_length=60)
    predictions = answer_questions(questions, windows, *scores, options)
    texts = {q.id: p.text for q, p in zip(questions, predictions, strict=True)}
    # Some gold answers start or end inside a token.
    assert score_v1(questions, texts)["exact_match"] > 99.5
