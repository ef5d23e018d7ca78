import jax
import numpy as np
import pytest

from bert_jax.models.pooling import unit_length
from bert_jax.models.ranking_loss import ranking_loss_sum

SCALE = 5.0


def _vectors(rows: int, texts: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, texts, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _by_hand(query: np.ndarray, right: np.ndarray, wrong: list[np.ndarray]) -> float:
    scores = np.array([SCALE * (query @ other) for other in [right, *wrong]], np.float64)
    return float(np.log(np.exp(scores).sum()) - scores[0])


def _loss(
    vectors: np.ndarray, numbers: np.ndarray, weights: np.ndarray, symmetric: bool = False
) -> tuple[float, float]:
    total, weight = ranking_loss_sum(vectors, numbers, weights, scale=SCALE, symmetric=symmetric)
    return float(total), float(weight)


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_text_chooses_among_those_of_the_batch(symmetric: bool) -> None:
    vectors = _vectors(3, 2)
    first, second = vectors[:, 0], vectors[:, 1]
    expected = sum(
        _by_hand(first[i], second[i], [second[j] for j in range(3) if j != i]) for i in range(3)
    )
    if symmetric:
        back = sum(
            _by_hand(second[i], first[i], [first[j] for j in range(3) if j != i]) for i in range(3)
        )
        expected = (expected + back) / 2
    found = _loss(vectors, np.arange(6).reshape(3, 2), np.ones(3, np.float32), symmetric)
    np.testing.assert_allclose(found, (expected, 3.0), rtol=1e-5)


def test_hard_negatives_of_all_rows_are_candidates() -> None:
    vectors = _vectors(2, 3)
    first, second, negative = vectors.swapaxes(0, 1)
    expected = sum(
        _by_hand(first[i], second[i], [second[1 - i], negative[0], negative[1]]) for i in range(2)
    )
    found = _loss(vectors, np.arange(6).reshape(2, 3), np.ones(2, np.float32))
    np.testing.assert_allclose(found, (expected, 2.0), rtol=1e-5)


def test_copies_of_the_partner_and_of_the_text_itself_are_no_negatives() -> None:
    vectors = _vectors(3, 2)
    numbers = np.array([[0, 1], [2, 1], [3, 0]])  # a partner twice, and a text as another's partner
    first, second = vectors[:, 0], vectors[:, 1]
    expected = (
        _by_hand(first[0], second[0], [])
        + _by_hand(first[1], second[1], [second[2]])
        + _by_hand(first[2], second[2], [second[0], second[1]])
    )
    np.testing.assert_allclose(_loss(vectors, numbers, np.ones(3, np.float32))[0], expected, 1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_without_weight_change_nothing(symmetric: bool) -> None:
    vectors, numbers = _vectors(3, 2), np.arange(6).reshape(3, 2)
    whole = _loss(vectors, numbers, np.ones(3, np.float32), symmetric)
    padded = np.concatenate([vectors, np.zeros((2, 2, 6), np.float32)])
    padding = np.concatenate([numbers, np.zeros((2, 2), int)])
    weights = np.array([1, 1, 1, 0, 0], np.float32)
    np.testing.assert_allclose(_loss(padded, padding, weights, symmetric), whole, rtol=1e-6)


def test_the_direction_of_zeros_has_no_gradient() -> None:
    gradient = jax.grad(lambda vectors: unit_length(vectors).sum())(np.zeros((1, 3), np.float32))
    assert np.isfinite(gradient).all()
    scaled = unit_length(np.array([[3.0, 4.0]], np.float32))
    np.testing.assert_allclose(scaled, [[0.6, 0.8]], rtol=1e-6)
