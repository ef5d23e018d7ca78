import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription, Pooling
from bert_jax.models.heads import mean_pool
from bert_jax.training.sharding import unbox

CONFIG = BertConfig(
    vocabulary_size=50, layers=2, width=32, heads=2, feed_forward_width=64, max_positions=16
)
LABELS = ("no", "yes", "maybe")
RNG = np.random.default_rng(0)
INPUTS = (
    RNG.integers(0, 50, (3, 12)).astype(np.int32),
    RNG.integers(0, 2, (3, 12)).astype(np.int32),
    np.array([12, 7, 2], np.int32),
)
HEADS_BESIDE = {
    Head.NONE: {"pooler"},
    Head.PRETRAINING: {"pooler", "mlm_head", "next_sentence_head"},
    Head.CLASSIFICATION: {"pooler", "classifier"},
    Head.MULTI_LABEL: {"pooler", "classifier"},
    Head.REGRESSION: {"pooler", "classifier"},
    Head.CHOICE: {"pooler", "classifier"},
    Head.TAGGING: {"classifier"},
    Head.QUESTION_ANSWERING: {"classifier"},
}
OUTPUT_SHAPES = {
    Head.CLASSIFICATION: (3, 3),
    Head.MULTI_LABEL: (3, 3),
    Head.REGRESSION: (3, 1),
    Head.CHOICE: (3, 1),
    Head.TAGGING: (3, 12, 3),
    Head.QUESTION_ANSWERING: (3, 12, 2),
}


@pytest.mark.parametrize("head", Head)
def test_every_model_keeps_its_encoder_in_one_place(head: Head) -> None:
    described = ModelDescription(CONFIG, head, LABELS)
    tree = jax.eval_shape(lambda key: unbox(described.initialise(key)), jax.random.key(0))
    bare = ModelDescription(CONFIG, Head.NONE, pooler=False)
    encoder = jax.eval_shape(lambda key: unbox(bare.initialise(key)), jax.random.key(0))
    assert tree["encoder"] == encoder["encoder"]
    assert tree.keys() == {"encoder"} | HEADS_BESIDE[head]


@pytest.mark.parametrize("head", OUTPUT_SHAPES)
def test_heads_ignore_padding_and_drop_out_only_when_training(head: Head) -> None:
    described = ModelDescription(CONFIG, head, LABELS)
    params = jax.jit(lambda key: unbox(described.initialise(key)))(jax.random.key(0))
    model = described.model()
    apply = jax.jit(model.apply, static_argnames="deterministic")
    outputs = apply({"params": params}, *INPUTS, deterministic=True)
    assert outputs.shape == OUTPUT_SHAPES[head]
    assert outputs.dtype == jnp.float32
    padded = INPUTS[0].copy()
    padded[np.arange(12) >= INPUTS[2][:, None]] = 49
    again = apply({"params": params}, padded, *INPUTS[1:], deterministic=True)
    if head in (Head.TAGGING, Head.QUESTION_ANSWERING):
        real = np.arange(12) < INPUTS[2][:, None]
        outputs, again = outputs[real], again[real]
    np.testing.assert_array_equal(outputs, again)
    rngs = {"dropout": jax.random.key(1)}
    dropped = apply({"params": params}, *INPUTS, deterministic=False, rngs=rngs)
    assert not np.allclose(dropped.reshape(-1)[:3], outputs.reshape(-1)[:3])


def test_a_description_survives_json() -> None:
    described = ModelDescription(
        dataclasses.replace(CONFIG, hidden_dropout=0.2),
        Head.TAGGING,
        LABELS,
        pooling=Pooling.CLS,
        options={"threshold": -1.5},
    )
    assert ModelDescription.from_json(described.to_json()) == described


def test_how_a_run_computed_is_not_kept() -> None:
    plain = dataclasses.replace(CONFIG, attention_dropout=0.0)
    computed = dataclasses.replace(plain, attention="splash", remat="full", vocabulary_chunks=8)
    run = ModelDescription(computed, Head.NONE)
    assert ModelDescription.from_json(run.to_json()) == ModelDescription(plain, Head.NONE)


def test_labels_are_needed_where_outputs_have_names() -> None:
    with pytest.raises(UserError, match="names of its labels"):
        ModelDescription(CONFIG, Head.CLASSIFICATION)
    with pytest.raises(UserError, match="cannot be read"):
        ModelDescription.from_json('{"config": {}}')


def test_the_mean_is_over_real_tokens() -> None:
    hidden = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    pooled = mean_pool(hidden, np.array([4, 1, 0], np.int32))
    np.testing.assert_allclose(pooled[0], hidden[0].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(pooled[1], hidden[1, 0], rtol=1e-6)
    np.testing.assert_array_equal(pooled[2], 0)
