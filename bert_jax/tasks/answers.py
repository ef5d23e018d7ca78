"""Answers as texts, from the scores that a model gives a question's windows.

The rules are google-research/bert's (``run_squad.py``), with two liberties that lose no candidate:
the best spans are found among all of a window, not among those that start and end at one of its 20
best tokens, and the text is the context's between two characters.

Shapes: W windows, L sequence length, C context tokens of a window, E the longest answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bert_jax.data.chunks import offsets_of
from bert_jax.data.question_windows import QuestionWindows
from bert_jax.data.questions import Question
from bert_jax.data.windows import has_most_context
from bert_jax.errors import UserError


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are chosen.

    Attributes:
      max_answer_length: the most tokens of an answer.
      candidates: the most answers to give for each question.
      can_be_impossible: whether a question may have no answer (SQuAD 2.0).
      no_answer_threshold: a question has no answer where "no answer" beats the best span by more.

    Raises:
      UserError: a value is out of range.
    """

    max_answer_length: int = 30
    candidates: int = 20
    can_be_impossible: bool = False
    no_answer_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_answer_length", "candidates"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give at least 1")


class Answer(NamedTuple):
    """A possible answer.

    Attributes:
      text: a piece of the context; empty for "there is no answer".
      start: the character of the context at which it starts; 0 for no answer.
      score: the sum of the scores of its start and its end.
      probability: softmax of the score over the question's candidates.
    """

    text: str
    start: int
    score: float
    probability: float


class Prediction(NamedTuple):
    """What is answered to a question.

    Attributes:
      text: the answer; empty if there is none.
      span_text: the best answer that is a span, whatever the threshold; empty where the context has
        no tokens.
      no_answer_score: by how much "no answer" beats the best span: what SQuAD 2.0's script may be
        given as the probability of no answer. 0 where every question has an answer, infinite where
        there is no span.
      candidates: possible answers, different texts, the best first.
    """

    text: str
    span_text: str
    no_answer_score: float
    candidates: tuple[Answer, ...]


def answer_questions(
    questions: Sequence[Question],
    windows: QuestionWindows,
    start_scores: Sequence[np.ndarray],
    end_scores: Sequence[np.ndarray],
    options: AnswerOptions,
) -> Iterator[Prediction]:
    """Chooses each question's answer among the spans of all its windows.

    A span starts at a token that has most context in that window, and ends in the same window. No
    answer scores what [CLS] does as start and end, in the window where that is least.

    Args:
      questions: the questions.
      windows: their windows.
      start_scores, end_scores: for each of the W windows what the model gives its row's columns: at
        least as many numbers as the row has tokens, so an array [W, L] or rows of several lengths.
      options: how to choose.

    Yields:
      One prediction for each question, in their order.
    """
    has_context = has_most_context(windows.windows)
    offsets = offsets_of(windows.windows.lengths)
    columns, first_tokens = windows.context_columns, windows.window_starts
    counts = np.bincount(windows.windows.sequences, minlength=len(questions))
    for question, first, last in zip(
        questions, offsets_of(counts)[:-1], offsets_of(counts)[1:], strict=True
    ):
        starts, ends, scores = [], [], []
        for window in range(first, last):
            context = slice(columns[window], columns[window] + windows.windows.lengths[window])
            start_C = np.asarray(start_scores[window], np.float64)[context]
            end_C = np.asarray(end_scores[window], np.float64)[context]
            may_start_C = has_context[offsets[window] : offsets[window + 1]]
            start, end, score = _best_spans(np.where(may_start_C, start_C, -np.inf), end_C, options)
            starts.append(first_tokens[window] + start)
            ends.append(first_tokens[window] + end)
            scores.append(score)
        no_answer = min(
            float(start_scores[window][0]) + float(end_scores[window][0])
            for window in range(first, last)
        )
        spans = _distinct_texts(
            question.context,
            windows.character_starts[np.concatenate(starts)],
            windows.character_ends[np.concatenate(ends)],
            np.concatenate(scores),
            options.candidates,
        )
        yield _predict(spans, no_answer, options)


def _best_spans(
    start_C: np.ndarray, end_C: np.ndarray, options: AnswerOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last tokens of a window's best spans, and their scores; in no order."""
    longest = options.max_answer_length
    padded = np.concatenate([end_C, np.full(longest - 1, -np.inf)])
    if not start_C.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    score_CE = start_C[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)
    score = score_CE.ravel()
    # Spans of one text are one candidate, so more of them are needed.
    kept = options.candidates**2
    best = np.arange(len(score)) if len(score) <= kept else np.argpartition(-score, kept)[:kept]
    best = best[score[best] > -np.inf]
    start, length = np.divmod(best, longest)
    return start, start + length, score[best]


def _distinct_texts(
    context: str, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, count: int
) -> list[Answer]:
    """The best spans of different texts, the best first; probabilities are not yet known."""
    found: dict[str, Answer] = {}
    for number in np.lexsort([ends, starts, -scores]):
        start = int(starts[number])
        text = context[start : ends[number]]
        if text not in found:
            found[text] = Answer(text, start, float(scores[number]), 0.0)
        if len(found) == count:
            break
    return list(found.values())


def _predict(spans: list[Answer], no_answer: float, options: AnswerOptions) -> Prediction:
    candidates = spans
    margin = 0.0
    if options.can_be_impossible or not spans:
        nothing = Answer("", 0, no_answer, 0.0)
        candidates = sorted([*spans, nothing], key=lambda answer: -answer.score)
        margin = no_answer - spans[0].score if spans else np.inf
    scores = np.array([answer.score for answer in candidates])
    odds = np.exp(scores - scores.max())
    best = spans[0].text if spans else ""
    is_impossible = options.can_be_impossible and margin > options.no_answer_threshold
    return Prediction(
        text="" if is_impossible else best,
        span_text=best,
        no_answer_score=margin if options.can_be_impossible else 0.0,
        candidates=tuple(
            answer._replace(probability=float(probability))
            for answer, probability in zip(candidates, odds / odds.sum(), strict=True)
        ),
    )
