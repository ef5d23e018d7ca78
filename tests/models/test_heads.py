import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bert_jax.models.config import BertConfig
from bert_jax.models.decoder import PADDING_LOGIT
from bert_jax.models.heads import PretrainingModel

CONFIG = BertConfig(
    vocabulary_size=200, layers=2, width=32, heads=2, feed_forward_width=64, max_positions=16
)
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 200, (3, 12)).astype(np.int32)
SEGMENTS = RNG.integers(0, 2, (3, 12)).astype(np.int32)
LENGTHS = np.array([12, 7, 2], np.int32)
POSITIONS = np.array([[0, 11, 3], [6, 1, 0], [1, 0, 0]], np.int32)
INPUTS = (TOKENS, SEGMENTS, LENGTHS, POSITIONS)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    model = PretrainingModel(CONFIG)
    return nn.unbox(jax.jit(lambda key: model.init(key, *INPUTS, deterministic=True))(KEY))


@functools.partial(jax.jit, static_argnames=("config", "next_sentence"))
def predict(
    params: dict[str, Any],
    *inputs: Any,
    config: BertConfig = CONFIG,
    next_sentence: bool = True,
) -> tuple[jax.Array, jax.Array | None]:
    model = PretrainingModel(config, next_sentence)
    return model.apply(params, *inputs, deterministic=True)


def test_shapes_and_types(params: dict[str, Any]) -> None:
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(CONFIG, compute_dtype=dtype)
        outputs = predict(params, *INPUTS, config=config)
        assert [out.shape for out in outputs] == [(3, 3, 256), (3, 2)]
        assert [out.dtype for out in outputs] == [jnp.float32, jnp.float32]


def test_each_masked_position_is_scored_for_itself(params: dict[str, Any]) -> None:
    logits, _ = predict(params, *INPUTS)
    everywhere = np.broadcast_to(np.arange(12, dtype=np.int32), (3, 12))
    all_logits, _ = predict(params, *INPUTS[:3], everywhere)
    picked = np.take_along_axis(np.asarray(all_logits), POSITIONS[..., None], axis=1)
    np.testing.assert_allclose(logits, picked, atol=1e-5)


def test_padding_logits_are_masked_whatever_the_padding_rows_hold(params: dict[str, Any]) -> None:
    before, _ = predict(params, *INPUTS)
    assert (before[..., 200:] == PADDING_LOGIT).all()
    assert jnp.abs(before[..., :200]).max() < 10
    spoilt = jax.tree.map(jnp.copy, params)
    spoilt["params"]["encoder"]["embeddings"]["word"] = (
        params["params"]["encoder"]["embeddings"]["word"].at[200:].set(7.0)
    )
    after, _ = predict(spoilt, *INPUTS)
    np.testing.assert_array_equal(before, after)


def test_decoder_is_tied_to_the_word_table(params: dict[str, Any]) -> None:

    def logit(params: dict[str, Any]) -> jax.Array:
        mlm_logits, _ = predict(params, *INPUTS)
        return mlm_logits[0, 0, 150]

    # The first row does not hold token 150, so only the decoder can reach its embedding.
    assert 150 not in TOKENS[0]
    gradient = jax.grad(logit)(params)["params"]["encoder"]["embeddings"]["word"]
    assert (gradient[150] != 0).any()


def test_without_next_sentence_the_head_and_its_parameters_are_gone(
    params: dict[str, Any],
) -> None:
    model = PretrainingModel(CONFIG, next_sentence=False)
    own = nn.unbox(jax.jit(lambda key: model.init(key, *INPUTS, deterministic=True))(KEY))["params"]
    assert set(own) == {"encoder", "mlm_head"}
    assert set(params["params"]) == {"encoder", "mlm_head", "pooler", "next_sentence_head"}
    kept = {name: params["params"][name] for name in own}
    mlm_logits, pair_logits = predict({"params": kept}, *INPUTS, next_sentence=False)
    assert pair_logits is None
    expected, _ = predict(params, *INPUTS)
    np.testing.assert_allclose(mlm_logits, expected, atol=1e-6)
