"""Parameters pass through PyTorch's names and shapes unchanged, whatever the model's shape."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.formats.naming import canonical, to_params, to_tensors
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.training.sharding import unbox


@st.composite
def descriptions(draw: st.DrawFn) -> ModelDescription:
    heads = draw(st.integers(1, 3))
    config = BertConfig(
        vocabulary_size=draw(st.integers(1, 300)),
        layers=draw(st.integers(1, 3)),
        width=heads * draw(st.integers(1, 4)),
        heads=heads,
        feed_forward_width=draw(st.integers(1, 6)),
        max_positions=draw(st.integers(1, 5)),
        segments=draw(st.integers(1, 3)),
    )
    labels = tuple("abc"[: draw(st.integers(1, 3))])
    return ModelDescription(config, draw(st.sampled_from(Head)), labels, pooler=draw(st.booleans()))


def numbered(description: ModelDescription) -> Any:
    """Parameters in which no two numbers are equal; the vocabulary's padding is zero."""
    shapes = jax.eval_shape(lambda key: unbox(description.initialise(key)), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    ends = np.cumsum([leaf.size for leaf in leaves])
    arrays = [
        np.arange(end - leaf.size + 1, end + 1, dtype=np.float32).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    params = jax.tree.unflatten(structure, arrays)
    vocabulary = description.config.vocabulary_size
    params["encoder"]["embeddings"]["word"][vocabulary:] = 0
    if "mlm_head" in params:
        params["mlm_head"]["bias"][vocabulary:] = 0
    return params


@given(description=descriptions())
@settings(max_examples=25)
def test_nothing_is_lost(description: ModelDescription) -> None:
    params = numbered(description)
    tensors = to_tensors(params, description)
    numbers = np.concatenate([tensor.ravel() for tensor in tensors.values()])
    assert len(np.unique(numbers)) == len(numbers)
    back, notes = to_params(canonical(tensors, "there"), description, "there")
    assert notes == []
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_tied_tensors_may_stand_twice_or_under_their_other_name() -> None:
    config = BertConfig(
        vocabulary_size=7, layers=1, width=4, heads=2, feed_forward_width=4, max_positions=3
    )
    description = ModelDescription(config, Head.PRETRAINING)
    tensors = to_tensors(numbered(description), description)
    bias = tensors["cls.predictions.bias"]
    twice = tensors | {"cls.predictions.decoder.bias": bias}
    assert canonical(twice, "there").keys() == tensors.keys()
    del twice["cls.predictions.bias"]
    assert canonical(twice, "there").keys() == tensors.keys()
    with pytest.raises(
        UserError, match=r"there has a cls\.predictions\.decoder\.bias that differs"
    ):
        canonical(tensors | {"cls.predictions.decoder.bias": bias + 1}, "there")


def test_an_encoder_without_a_prefix_is_one() -> None:
    names = ("embeddings.x", "encoder.y", "pooler.z", "classifier.w")
    array = np.zeros(1, np.float32)
    renamed = canonical(dict.fromkeys(names, array), "there")
    assert set(renamed) == {"bert.embeddings.x", "bert.encoder.y", "bert.pooler.z", "classifier.w"}
