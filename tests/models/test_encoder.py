import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Encoder

CONFIG = BertConfig(
    vocabulary_size=200, layers=4, width=32, heads=2, feed_forward_width=64, max_positions=16
)
LENGTHS = np.array([16, 9, 1, 0], np.int32)


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocabulary_size, (4, 16)).astype(np.int32)
    return tokens, rng.integers(0, 2, (4, 16)).astype(np.int32), LENGTHS


@pytest.fixture(scope="module")
def params(inputs: tuple[np.ndarray, ...]) -> dict[str, Any]:
    initialise = jax.jit(lambda key: Encoder(CONFIG).init(key, *inputs, deterministic=True))
    return initialise(jax.random.key(0))


@functools.partial(jax.jit, static_argnames=("config", "all_hidden_states"))
def encode(
    params: dict[str, Any],
    inputs: tuple[Any, ...],
    dropout_key: jax.Array | None = None,
    *,
    config: BertConfig = CONFIG,
    all_hidden_states: bool = False,
) -> jax.Array:
    """Hidden states; with dropout if there is a key for it."""
    return Encoder(config).apply(
        nn.unbox(params),
        *inputs,
        deterministic=dropout_key is None,
        all_hidden_states=all_hidden_states,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )


def test_every_parameter_names_its_axes(params: dict[str, Any]) -> None:
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    for leaf in leaves:
        assert len(leaf.names) == leaf.value.ndim
        assert leaf.value.dtype == jnp.float32
    stacked = jax.tree.leaves(
        params["params"]["layers"], is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    for leaf in stacked:
        assert leaf.names[0] == "layers"
        assert leaf.value.shape[0] == CONFIG.layers


def test_layers_start_from_different_weights(params: dict[str, Any]) -> None:
    kernel = nn.unbox(params)["params"]["layers"]["feed_forward"]["inner"]["kernel"]
    assert not jnp.array_equal(kernel[0], kernel[1])


def test_vocabulary_padding_starts_at_zero_and_changes_no_other_row(
    params: dict[str, Any],
) -> None:
    word = nn.unbox(params)["params"]["embeddings"]["word"]
    assert word.shape == (256, CONFIG.width)
    assert (word[200:] == 0).all()
    assert (word[:200] != 0).any(axis=1).all()


@pytest.mark.parametrize("unroll", [2, 3, 4])
def test_unroll_changes_neither_layout_nor_results(
    unroll: int, params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    config = dataclasses.replace(CONFIG, unroll=unroll)
    theirs = jax.eval_shape(
        lambda key: Encoder(config).init(key, *inputs, deterministic=True), jax.random.key(0)
    )
    assert jax.tree.structure(theirs) == jax.tree.structure(params)
    assert jax.tree.map(jnp.shape, theirs) == jax.tree.map(jnp.shape, params)
    for dropout_key in (None, jax.random.key(1)):
        np.testing.assert_allclose(
            encode(params, inputs, dropout_key, config=config),
            encode(params, inputs, dropout_key),
            atol=2e-6,
        )


@pytest.mark.parametrize("unroll", [1, 4])
def test_only_what_is_read_is_given_with_the_same_gradients(
    unroll: int, params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    encoder = Encoder(dataclasses.replace(CONFIG, unroll=unroll))
    positions = np.array([[0, 3, 3], [8, 0, 1], [0, 0, 0], [15, 0, 2]], np.int32)

    @functools.partial(jax.jit, static_argnames="gathered")
    def read(params: dict[str, Any], *, gathered: bool) -> tuple[Any, jax.Array]:
        """The gradients of some loss of what is read, and that."""

        def loss(params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            positions_BP = positions if gathered else None
            hidden = encoder.apply(params, *inputs, deterministic=True, positions_BP=positions_BP)
            if not gathered:
                hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
            return jnp.sum(jnp.sin(hidden)), hidden

        return jax.grad(loss, has_aux=True)(params)

    (gradients, mine), (all_gradients, all_) = (
        read(nn.unbox(params), gathered=gathered) for gathered in (True, False)
    )
    np.testing.assert_allclose(mine, all_, atol=2e-6)
    jax.tree.map(
        lambda ours, all_: np.testing.assert_allclose(ours, all_, rtol=1e-4, atol=2e-5),
        gradients,
        all_gradients,
    )


def sum_of_sines(
    config: BertConfig, inputs: tuple[Any, ...], params: dict[str, Any], key: jax.Array
) -> jax.Array:
    """Some loss of hidden states at the first positions, with dropout."""
    positions = np.zeros((len(inputs[0]), 2), np.int32)
    hidden = Encoder(config).apply(
        params, *inputs, deterministic=False, positions_BP=positions, rngs={"dropout": key}
    )
    return jnp.sum(jnp.sin(hidden))


@functools.partial(jax.jit, static_argnames="config")
def differentiate(
    params: dict[str, Any], inputs: tuple[Any, ...], config: BertConfig
) -> tuple[jax.Array, dict[str, Any]]:
    """The loss of two layers and its gradients."""
    two = jax.tree.map(lambda leaf: leaf[:2], params["params"]["layers"])
    params = {"params": params["params"] | {"layers": two}}
    loss = functools.partial(sum_of_sines, config, inputs)
    return jax.value_and_grad(loss)(params, jax.random.key(1))


@pytest.mark.parametrize(
    ("remat", "unroll"), [("dots", 1), ("offload", 1), ("offload", 2), ("full", 1), ("full", 2)]
)
def test_rematerialisation_changes_no_loss_and_no_gradient(
    remat: str, unroll: int, params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    plain = dataclasses.replace(CONFIG, layers=2, unroll=unroll, remat="none")
    params = nn.unbox(params)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5),
        differentiate(params, inputs, dataclasses.replace(plain, remat=remat)),
        differentiate(params, inputs, plain),
    )


@pytest.mark.parametrize("unroll", [1, 4])
def test_rematerialisation_keeps_less_for_the_backward_pass(
    unroll: int, params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    def kept_bytes(remat: str) -> int:
        config = dataclasses.replace(CONFIG, unroll=unroll, remat=remat)
        loss = functools.partial(sum_of_sines, config, inputs)
        _, backward = jax.eval_shape(
            lambda params: jax.vjp(loss, params, jax.random.key(1)), nn.unbox(params)
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    full, dots, none, auto = map(kept_bytes, ("full", "dots", "none", "auto"))
    assert full < dots < 0.6 * none
    # A loop writes what it keeps; of unrolled layers the compiler chooses. Traces that JAX has at
    # hand can share an array more or less.
    assert auto == pytest.approx(dots if unroll == 1 else none, rel=0.05)


def test_rematerialisation_takes_less_memory_as_the_compiler_counts(params: dict[str, Any]) -> None:
    ids = np.zeros((32, 16), np.int32)
    inputs = (ids, ids, np.full(32, 16))

    def temporary_bytes(remat: str) -> int:
        loss = functools.partial(sum_of_sines, dataclasses.replace(CONFIG, remat=remat), inputs)
        gradient = jax.jit(jax.grad(loss)).lower(nn.unbox(params), jax.random.key(1))
        return gradient.compile().memory_analysis().temp_size_in_bytes

    assert 2 * temporary_bytes("full") < 1.5 * temporary_bytes("dots") < temporary_bytes("none")


def test_unrolled_layers_drop_different_elements(inputs: tuple[np.ndarray, ...]) -> None:
    """Equal layers that add nothing but dropped ones: the last mask differs from those before."""
    config = dataclasses.replace(CONFIG, layers=2, unroll=2, hidden_dropout=0.5)
    encoder = Encoder(config)
    everywhere = np.broadcast_to(np.arange(16, dtype=np.int32), (4, 16))
    init = encoder.init(jax.random.key(0), *inputs, deterministic=True)
    zeroed = jax.tree.map(jnp.zeros_like, nn.unbox(init))
    layers = zeroed["params"]["layers"]
    layers["feed_forward"]["output"]["bias"] += jnp.array([[1.0], [2.0]])
    layers["attention_norm"]["scale"] += 1.0
    layers["feed_forward_norm"]["scale"] += 1.0
    states = encoder.apply(
        zeroed,
        *inputs,
        deterministic=False,
        positions_BP=everywhere,
        rngs={"dropout": jax.random.key(1)},
    )
    # Both masks together leave four levels; one mask used twice would leave two.
    levels = {float(level) for level in np.unique(np.round(np.asarray(states)[0, 0], 3))}
    assert len(levels) == 4


def test_padding_changes_no_real_position(
    params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    tokens, segments, lengths = inputs
    real = np.arange(16) < lengths[:, None]
    before = np.asarray(encode(params, inputs))
    other = np.where(real, tokens, (tokens + 1) % 200), np.where(real, segments, 1 - segments)
    after = np.asarray(encode(params, (*other, lengths)))
    np.testing.assert_array_equal(before[real], after[real])
    assert not np.array_equal(before[~real], after[~real])
    shorter = encode(params, (tokens[1:3, :9], segments[1:3, :9], lengths[1:3]))
    np.testing.assert_allclose(before[1:3, :9][real[1:3, :9]], shorter[real[1:3, :9]], atol=1e-5)


def test_length_zero_stays_finite(params: dict[str, Any], inputs: tuple[np.ndarray, ...]) -> None:
    assert jnp.isfinite(encode(params, inputs)).all()
    gradients = jax.grad(lambda params: encode(params, inputs).sum())(params)
    for gradient in jax.tree.leaves(gradients):
        assert jnp.isfinite(gradient).all()


def test_all_hidden_states_end_with_the_output(
    params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    states = encode(params, inputs, all_hidden_states=True)
    assert states.shape == (CONFIG.layers + 1, 4, 16, CONFIG.width)
    np.testing.assert_allclose(states[-1], encode(params, inputs), atol=1e-6)
    assert all(not jnp.allclose(before, after) for before, after in itertools.pairwise(states))


def test_bfloat16_is_close_to_float32(
    params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    outputs = encode(params, inputs, config=dataclasses.replace(CONFIG, compute_dtype="bfloat16"))
    assert outputs.dtype == jnp.bfloat16
    real = np.arange(16) < LENGTHS[:, None]
    error = np.abs(np.asarray(outputs, np.float32) - encode(params, inputs))[real]
    # LayerNorm's outputs are of size 1 and a few; 2**-8 is bfloat16's rounding.
    assert 0 < error.max() < 16 * 2**-8
    assert error.mean() < 3 * 2**-8


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_dropout_differs_between_keys_and_repeats_for_one(
    impl: str, params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    first, same, other = (
        encode(params, inputs, jax.random.key(seed, impl=impl)) for seed in (1, 1, 2)
    )
    assert jnp.array_equal(first, same)
    assert not jnp.allclose(first, other)
    assert not jnp.allclose(first, encode(params, inputs))


def test_layers_drop_different_elements(
    params: dict[str, Any], inputs: tuple[np.ndarray, ...]
) -> None:
    """With equal layers, and dropout in one place only, the masks are seen in the outputs."""
    config = dataclasses.replace(CONFIG, hidden_dropout=0.5, attention_dropout=0.0)
    zeroed = jax.tree.map(jnp.zeros_like, nn.unbox(params))
    layers = zeroed["params"]["layers"]
    # The attention half gives zeros, so each layer computes norm(dropout(1)): +1 or so where kept.
    layers["feed_forward"]["output"]["bias"] += 1.0
    layers["feed_forward_norm"]["scale"] += 1.0
    states = encode(zeroed, inputs, jax.random.key(0), config=config, all_hidden_states=True)
    masks = np.asarray(states[1:]) > 0
    for first in range(CONFIG.layers):
        assert 0.4 < masks[first].mean() < 0.6
        for second in range(first):
            assert 0.4 < (masks[first] == masks[second]).mean() < 0.6


def test_too_long_a_sequence_is_refused(params: dict[str, Any]) -> None:
    tokens = np.zeros((1, 17), np.int32)
    with pytest.raises(UserError, match=r"length 17 .* max_positions 16"):
        Encoder(CONFIG).apply(params, tokens, tokens, np.array([17]), deterministic=True)
