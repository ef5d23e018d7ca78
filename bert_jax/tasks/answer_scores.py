"""Exact match and F1 of answers, as SQuAD's official scripts count them, to the last digit.

The scripts are ``evaluate-v1.1.py`` and ``evaluate-v2.0.py`` of
https://rajpurkar.github.io/SQuAD-explorer. They differ where an answer has no words once articles
and punctuation are gone, and in what they do with questions that were not answered.
"""

import collections
import re
import string
from collections.abc import Callable, Mapping, Sequence

from bert_jax.data.questions import Question
from bert_jax.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> int:
    """1 if the two are the same once normalised, else 0."""
    return int(normalize_answer(prediction) == normalize_answer(answer))


def word_f1(prediction: str, answer: str) -> float:
    """F1 of the words that the two share once normalised; 0 where either has none."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    shared = sum((collections.Counter(predicted) & collections.Counter(expected)).values())
    if not shared:
        return 0
    precision, recall = shared / len(predicted), shared / len(expected)
    return (2 * precision * recall) / (precision + recall)


def score_v1(questions: Sequence[Question], predictions: Mapping[str, str]) -> dict[str, float]:
    """Scores answers as SQuAD 1.1 does.

    Args:
      questions: the questions; each has an answer.
      predictions: answers by question; a question that is missing scores 0.

    Returns:
      ``exact_match`` and ``f1``, in percent.
    """
    exact: float = 0
    f1: float = 0
    # Added one by one, since Python's ``sum`` rounds otherwise from version 3.12 on.
    for question in questions:
        if question.id in predictions:
            prediction = predictions[question.id]
            exact += max(exact_match(prediction, answer) for answer in question.answers)
            f1 += max(word_f1(prediction, answer) for answer in question.answers)
    return {"exact_match": 100.0 * exact / len(questions), "f1": 100.0 * f1 / len(questions)}


def score_v2(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    no_answer_scores: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Scores answers as SQuAD 2.0 does; the keys are those of the official script.

    Args:
      questions: the questions.
      predictions: answers by question; empty where there is none. To find the best threshold, give
        the best spans (``Prediction.span_text``), for one that is empty stays so.
      no_answer_scores: how sure it is that a question has no answer; any scale.
      threshold: where that is more than this, the prediction counts as empty.

    Returns:
      ``exact``, ``f1`` (percent) and ``total``; the same with ``HasAns_`` and ``NoAns_`` in front
      for the questions with and without an answer, where there are any. With ``no_answer_scores``
      also the best scores that a threshold can give to ``predictions``, and these thresholds:
      ``best_exact``, ``best_exact_thresh``, ``best_f1``, ``best_f1_thresh``.

    Raises:
      UserError: a question was not answered.
    """
    for question in questions:
        if question.id not in predictions:
            raise UserError(f"there is no answer to question {question.id}; predict one, or ''")
    raw = {
        "exact": _best_over_answers(exact_match, questions, predictions),
        "f1": _best_over_answers(_f1_v2, questions, predictions),
    }
    groups = {
        "": questions,
        "HasAns_": [question for question in questions if not question.is_impossible],
        "NoAns_": [question for question in questions if question.is_impossible],
    }
    result: dict[str, float] = {}
    for prefix, group in groups.items():
        if not group:
            continue
        for name, scores in raw.items():
            counted = [
                float(question.is_impossible)
                if no_answer_scores is not None and no_answer_scores[question.id] > threshold
                else scores[question.id]
                for question in group
            ]
            result[f"{prefix}{name}"] = 100.0 * sum(counted) / len(group)
        result[f"{prefix}total"] = len(group)
    if no_answer_scores is not None:
        for name, scores in raw.items():
            best, best_threshold = _best_threshold(questions, predictions, scores, no_answer_scores)
            result[f"best_{name}"] = best
            result[f"best_{name}_thresh"] = best_threshold
    return result


def _f1_v2(prediction: str, answer: str) -> float:
    """As ``word_f1``, but that two texts without words agree."""
    if not normalize_answer(prediction) or not normalize_answer(answer):
        return exact_match(prediction, answer)
    return word_f1(prediction, answer)


def _best_over_answers(
    score: Callable[[str, str], float],
    questions: Sequence[Question],
    predictions: Mapping[str, str],
) -> dict[str, float]:
    best = {}
    for question in questions:
        answers = [answer for answer in question.answers if normalize_answer(answer)] or [""]
        best[question.id] = max(score(predictions[question.id], answer) for answer in answers)
    return best


def _best_threshold(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    no_answer_scores: Mapping[str, float],
) -> tuple[float, float]:
    """The best mean score in percent, and the least threshold that gives it."""
    impossible = {question.id: question.is_impossible for question in questions}
    # At first nothing is answered. Then questions are answered one by one, the surest first.
    current: float = sum(impossible.values())
    best, threshold = current, 0.0
    for id in sorted(no_answer_scores, key=lambda id: no_answer_scores[id]):
        if id not in scores:
            continue
        if not impossible[id]:
            current += scores[id]
        elif predictions[id]:
            current -= 1
        if current > best:
            best, threshold = current, no_answer_scores[id]
    return 100.0 * best / len(scores), threshold
