import jax
import jax.numpy as jnp
import numpy as np
import torch

from bert_jax.models.decoder import PADDING_LOGIT
from bert_jax.models.losses import correct_sum, cross_entropy_sum


def random_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, (4, 6, 11)).astype(np.float32)
    labels = rng.integers(0, 11, (4, 6))
    weights = rng.integers(0, 2, (4, 6)).astype(np.float32)
    return logits, labels, weights


def test_cross_entropy_equals_torch() -> None:
    logits, labels, weights = random_case()
    total, weight = cross_entropy_sum(logits, labels, weights)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits.reshape(-1, 11)), torch.from_numpy(labels.ravel()), reduction="none"
    )
    np.testing.assert_allclose(total, (theirs.numpy() * weights.ravel()).sum(), rtol=1e-6)
    assert weight == weights.sum()


def test_parts_sum_to_the_whole() -> None:
    case = random_case()
    for function in (cross_entropy_sum, correct_sum):
        whole = np.array(function(*case))
        parts = sum(np.array(function(*(array[i : i + 2] for array in case))) for i in (0, 2))
        np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_cross_entropy_is_exact_for_large_logits() -> None:
    logits = jnp.array([[3e4, 3e4 - 2.0], [-3e4, -3e4]])
    total, _ = cross_entropy_sum(logits, jnp.array([1, 0]), jnp.ones(2))
    np.testing.assert_allclose(total, np.log1p(np.exp(-2.0)) + 2 + np.log(2), rtol=1e-6)


def test_weight_zero_hides_any_label() -> None:
    logits, labels, weights = random_case()
    meaningless = np.where(weights == 0, -100, labels)
    for function in (cross_entropy_sum, correct_sum):
        assert function(logits, meaningless, weights) == function(logits, labels, weights)


def test_vocabulary_padding_takes_no_part() -> None:
    logits, labels, weights = random_case()
    padded = np.concatenate([logits, np.full((4, 6, 5), PADDING_LOGIT, np.float32)], axis=-1)
    for function in (cross_entropy_sum, correct_sum):
        np.testing.assert_allclose(
            function(padded, labels, weights), function(logits, labels, weights), rtol=1e-6
        )
    gradient = jax.grad(lambda x: cross_entropy_sum(x, labels, weights)[0])(padded)
    assert (gradient[..., 11:] == 0).all()
    assert (gradient[..., :11] != 0).any()


def test_gradient_is_the_one_of_the_plain_formula() -> None:
    logits, labels, weights = random_case()
    labels = np.where(weights == 0, -100, labels)

    def plain(logits: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probabilities, labels[..., None] % 11, axis=-1)
        return -(picked[..., 0] * weights).sum()

    ours = jax.grad(lambda logits: cross_entropy_sum(logits, labels, weights)[0])(logits)
    np.testing.assert_allclose(ours, jax.grad(plain)(logits), atol=1e-6)
    assert (ours[weights == 0] == 0).all()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = jnp.zeros((300, 8), jnp.bfloat16)
    total, weight = cross_entropy_sum(logits, jnp.zeros(300, jnp.int32), jnp.ones(300))
    assert total.dtype == weight.dtype == jnp.float32
    np.testing.assert_allclose(total, 300 * np.log(8), rtol=1e-6)


def test_correct_counts_by_weight() -> None:
    logits = jnp.array([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0], [0.0, 0.0, 9.0]])
    correct, weight = correct_sum(logits, jnp.array([1, 1, 2]), jnp.array([1.0, 1.0, 0.5]))
    assert (correct, weight) == (1.5, 2.5)


def test_nothing_is_correct_beside_a_nan() -> None:
    logits = jnp.array([[0.0, jnp.nan, 1.0]] * 3)
    assert correct_sum(logits, jnp.arange(3), jnp.ones(3)) == (0, 3)


def test_of_equal_logits_the_first_wins() -> None:
    labels = jnp.arange(4)
    assert correct_sum(jnp.zeros((4, 4)), labels, jnp.ones(4)) == (1, 4)
    tied = jnp.array([[0.0, 7.0, 1.0, 7.0]] * 4)
    assert correct_sum(tied, labels, labels == 1) == (1, 1)
    assert correct_sum(tied, labels, labels == 3) == (0, 1)
