import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models.attention import dot_product_attention

BATCH, LENGTH, HEADS, HEAD_WIDTH = 3, 7, 2, 4


@pytest.fixture
def query_key_value() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    shape = (BATCH, LENGTH, HEADS, HEAD_WIDTH)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(3)]


def test_equals_the_definition(query_key_value: list[np.ndarray]) -> None:
    query, key, value = query_key_value
    lengths = np.array([7, 4, 1])
    outputs = dot_product_attention(query, key, value, lengths)
    for row, length in enumerate(lengths):
        for head in range(HEADS):
            scores = query[row, :, head] @ key[row, :length, head].T / np.sqrt(HEAD_WIDTH)
            weights = np.exp(scores)
            weights /= weights.sum(axis=1, keepdims=True)
            expected = weights @ value[row, :length, head]
            np.testing.assert_allclose(outputs[row, :, head], expected, atol=1e-6)


def test_padded_keys_and_values_change_nothing(query_key_value: list[np.ndarray]) -> None:
    query, key, value = query_key_value
    lengths = np.array([5, 2, 7])
    before = dot_product_attention(query, key, value, lengths)
    padding = (np.arange(LENGTH) >= lengths[:, None])[..., None, None]
    key, value = np.where(padding, 100.0, key), np.where(padding, -100.0, value)
    after = dot_product_attention(query, key, value, lengths)
    np.testing.assert_array_equal(before, after)


def test_length_zero_is_finite_forward_and_backward(query_key_value: list[np.ndarray]) -> None:
    def total(*arrays: jax.Array) -> jax.Array:
        return dot_product_attention(*arrays, jnp.array([0, 0, 3])).sum()

    value, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(*query_key_value)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)


def test_dropout_drops_probabilities_not_outputs(query_key_value: list[np.ndarray]) -> None:
    query, key, _ = query_key_value
    # With one-hot values the output is the probabilities themselves.
    identity = np.eye(LENGTH, dtype=np.float32)[None, :, None, :].repeat(BATCH, 0).repeat(HEADS, 2)
    lengths = np.full(BATCH, LENGTH)
    plain = dot_product_attention(query, key, identity, lengths)
    dropped = dot_product_attention(
        query, key, identity, lengths, dropout_rate=0.5, dropout_key=jax.random.key(0)
    )
    kept = dropped != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-5)


def test_bfloat16_takes_the_softmax_in_float32() -> None:
    # A softmax in bfloat16 would round the normaliser and the probabilities once more each.
    query = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    key = jnp.array([256.0, 1.0, 258.0], jnp.bfloat16).reshape(1, 3, 1, 1)
    value = jnp.array([0.0, 0.0, 1.0], jnp.bfloat16).reshape(1, 3, 1, 1)
    output = dot_product_attention(query, key, value, jnp.array([3]))
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(jnp.float32).item(), 1 / (1 + np.exp(-2)), rtol=2**-8)
