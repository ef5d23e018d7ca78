from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.reinitialisation import reinitialise_top_layers
from bert_jax.training.sharding import unbox

LAYERS = 3
CONFIG = BertConfig(vocabulary_size=50, layers=LAYERS, width=32, heads=2, feed_forward_width=64)


def full(value: float, head: Head = Head.CLASSIFICATION) -> dict[str, Any]:
    described = ModelDescription(CONFIG, head, ("no", "yes"))
    shapes = jax.eval_shape(lambda key: unbox(described.initialise(key)), jax.random.key(0))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)


@pytest.mark.parametrize("count", [1, 2, LAYERS])
def test_the_top_and_the_pooler_are_fresh_and_the_rest_is_kept(count: int) -> None:
    params, fresh = full(1.0), full(2.0)
    mixed = reinitialise_top_layers(params, fresh, count)
    assert jax.tree.structure(mixed) == jax.tree.structure(params)
    for name, leaf in flatten_dict(mixed, sep="/").items():
        if name.startswith("encoder/layers/"):
            assert (leaf[: LAYERS - count] == 1).all() and (leaf[LAYERS - count :] == 2).all()
            assert leaf.shape[0] == LAYERS
        else:
            assert (leaf == (2 if name.startswith("pooler/") else 1)).all(), name
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(params))


def test_a_model_without_a_pooler() -> None:
    mixed = reinitialise_top_layers(full(1.0, Head.TAGGING), full(2.0, Head.TAGGING), 1)
    assert mixed.keys() == {"encoder", "classifier"}


def test_none_is_nothing() -> None:
    params = full(1.0)
    assert reinitialise_top_layers(params, full(2.0), 0) is params


@pytest.mark.parametrize("count", [-1, LAYERS + 1])
def test_as_many_as_there_are(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} top layers .* model of 3; give 0 to 3"):
        reinitialise_top_layers(full(1.0), full(2.0), count)
