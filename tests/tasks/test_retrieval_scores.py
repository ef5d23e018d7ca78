import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score

from bert_jax.tasks import retrieval_scores
from bert_jax.tasks.retrieval_scores import score_retrieval


def _vectors(rows: int) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, 2, 5)).astype(np.float32)
    vectors[:, 1] += vectors[:, 0]
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_ranks_are_scikit_learn_s_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, numbers = _vectors(30), np.arange(60).reshape(30, 2)
    scores = vectors[:, 0] @ vectors[:, 1].T
    whole = score_retrieval(vectors, numbers, 20.0)
    assert whole["mean_reciprocal_rank"] == pytest.approx(
        label_ranking_average_precision_score(np.eye(30), scores)
    )
    assert whole["recall_at_1"] == np.mean(scores.argmax(axis=1) == np.arange(30))
    shifted = 20 * scores - (20 * scores).max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - np.diag(shifted)
    assert whole["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    monkeypatch.setattr(retrieval_scores, "_ROWS_AT_ONCE", 7)
    assert score_retrieval(vectors, numbers, 20.0) == pytest.approx(whole)


def test_a_model_that_sees_no_difference_finds_nothing() -> None:
    same = np.broadcast_to(np.float32([1, 0]), (4, 2, 2))
    scores = score_retrieval(same, np.arange(8).reshape(4, 2), 20.0)
    assert scores["recall_at_1"] == 0
    assert scores["mean_reciprocal_rank"] == 1 / 4


def test_equal_texts_are_one_candidate_and_a_query_never_finds_itself() -> None:
    a, b = np.float32([1, 0]), np.float32([0, 1])
    # The second pair's partner is the first pair's; the third query is its own nearest text.
    vectors = np.array([[a, a], [a, a], [b, a], [a, b]])
    numbers = np.array([[0, 1], [2, 1], [3, 1], [4, 3]])
    scores = score_retrieval(vectors, numbers, 1.0)
    # Two find their partner at once; for the third no other is left; the fourth's is second.
    assert scores["recall_at_1"] == 3 / 4
    assert scores["mean_reciprocal_rank"] == (1 + 1 + 1 + 1 / 2) / 4
