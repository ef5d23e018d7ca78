"""The decoder in chunks against the whole one: losses, accuracy, gradients, memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models.decoder import PADDING_LOGIT, Decoder, decode, score_in_chunks
from bert_jax.models.losses import cross_entropy, is_correct

ROWS, SIZE, WIDTH = 256, 200, 32

Array = jax.Array
Scores = tuple[Array, Array]


def random_case(seed: int = 0, dtype: Any = np.float32) -> tuple[Array, Array, Array, Array]:
    rng = np.random.default_rng(seed)
    hidden_BMD = jnp.asarray(rng.normal(size=(3, 5, WIDTH)), dtype)
    table_VD = jnp.asarray(rng.normal(size=(ROWS, WIDTH)), jnp.float32)
    bias_V = jnp.asarray(rng.normal(size=ROWS), jnp.float32)
    return hidden_BMD, table_VD, bias_V, jnp.asarray(rng.integers(0, SIZE, (3, 5)))


def whole(hidden_BMD: Array, table_VD: Array, bias_V: Array, labels_BM: Array) -> Scores:
    logits_BMV = decode(hidden_BMD, Decoder(table_VD, bias_V, SIZE), jnp.arange(ROWS))
    return cross_entropy(logits_BMV, labels_BM), is_correct(logits_BMV, labels_BM)


def chunked(
    hidden_BMD: Array, table_VD: Array, bias_V: Array, labels_BM: Array, chunks: int
) -> Scores:
    return score_in_chunks(hidden_BMD, Decoder(table_VD, bias_V, SIZE), labels_BM, chunks)


@pytest.mark.parametrize("chunks", [2, 8, 128])
def test_losses_and_accuracy_equal_those_of_all_logits(chunks: int) -> None:
    score = jax.jit(chunked, static_argnums=4)
    hits = 0
    for seed in range(5):
        hidden_BMD, table_VD, bias_V, labels_BM = random_case(seed)
        logits_BMV = decode(hidden_BMD, Decoder(table_VD, bias_V, SIZE), jnp.arange(ROWS))
        labels_BM = labels_BM.at[0].set(logits_BMV[0].argmax(axis=-1))
        case = (hidden_BMD, table_VD, bias_V, labels_BM)
        losses, correct = score(*case, chunks)
        expected_losses, expected_correct = whole(*case)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(correct, expected_correct)
        hits += int(correct.sum())
    assert 25 <= hits < 75


def test_gradients_equal_those_of_all_logits() -> None:
    *inputs, labels_BM = random_case()
    weights_BM = jnp.arange(15.0).reshape(3, 5)

    def loss(function: Any, *arguments: Any) -> Array:
        return jnp.sum(weights_BM * function(*arguments)[0])

    ours = jax.grad(loss, argnums=(1, 2, 3))(chunked, *inputs, labels_BM, 4)
    theirs = jax.grad(loss, argnums=(1, 2, 3))(whole, *inputs, labels_BM)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-4)
    assert (ours[1][SIZE:] == 0).all() and (ours[2][SIZE:] == 0).all()  # the padding's


@pytest.mark.parametrize("chunks", [2, 16])
def test_of_equal_logits_the_first_is_the_highest(chunks: int) -> None:
    hidden_BMD, table_VD, bias_V, _ = random_case()
    constant = (hidden_BMD, jnp.zeros_like(table_VD), jnp.zeros_like(bias_V))
    labels_BM = jnp.arange(15).reshape(3, 5) * 13
    losses, correct = chunked(*constant, labels_BM, chunks)
    np.testing.assert_allclose(losses, np.log(SIZE), rtol=1e-6)
    np.testing.assert_array_equal(correct, labels_BM == 0)


def test_products_are_in_bfloat16_and_losses_in_float32() -> None:
    case = random_case(dtype=jnp.bfloat16)
    losses, _ = chunked(*case, 4)
    assert losses.dtype == jnp.float32
    # The logits are those of `decode` in the same type, so only the sums differ.
    np.testing.assert_allclose(losses, whole(*case)[0], rtol=1e-5)


def test_gradients_of_chunks_are_summed_in_float32() -> None:
    *inputs, labels_BM = random_case(dtype=jnp.bfloat16)

    def error(function: Any, *chunks: int) -> float:
        def loss(hidden_BMD: Array) -> Array:
            return function(hidden_BMD, *inputs[1:], labels_BM, *chunks)[0].sum()

        exact = jax.grad(loss)(inputs[0].astype(jnp.float32))
        rounded = jax.grad(loss)(inputs[0]).astype(jnp.float32)
        return float(jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact))

    assert error(chunked, 128) < 2 * error(whole)


@pytest.mark.parametrize("chunks", [1, 2, 64])
def test_losses_are_exact_for_large_logits(chunks: int) -> None:
    bias_V = jnp.full(ROWS, -3e4).at[:2].set(jnp.array([3e4, 3e4 - 2.0]))
    zeros = (jnp.zeros((1, 2, WIDTH)), jnp.zeros((ROWS, WIDTH)))
    losses, correct = chunked(*zeros, bias_V, jnp.array([[1, 0]]), chunks)
    expected = [[np.log1p(np.exp(-2.0)) + 2, np.log1p(np.exp(-2.0))]]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_array_equal(correct, [[False, True]])


def test_padding_has_no_probability() -> None:
    hidden_BMD, table_VD, bias_V, labels_BM = random_case()
    expected, _ = chunked(hidden_BMD, table_VD, bias_V, labels_BM, 4)
    loud_V = bias_V.at[SIZE:].set(100.0)
    losses, _ = chunked(hidden_BMD, table_VD, loud_V, labels_BM, 4)
    np.testing.assert_array_equal(losses, expected)
    assert PADDING_LOGIT < -1e8


def test_a_training_step_needs_less_memory() -> None:
    def temporaries(chunks: int) -> int:
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in ((8, 64, WIDTH), (ROWS * 32, WIDTH), (ROWS * 32,))
        ]
        labels = jax.ShapeDtypeStruct((8, 64), jnp.int32)

        def loss(hidden_BMD: Array, table_VD: Array, bias_V: Array, labels_BM: Array) -> Array:
            decoder = Decoder(table_VD, bias_V, ROWS * 32)
            return score_in_chunks(hidden_BMD, decoder, labels_BM, chunks)[0].sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes, labels).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    # All logits are 16 MiB, and their gradient again.
    assert temporaries(16) < temporaries(1) / 4
