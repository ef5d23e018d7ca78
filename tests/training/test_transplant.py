"""A model starts from another's parameters: what fits is taken, the rest is told."""

import jax
import jax.numpy as jnp
import pytest

from bert_jax.errors import UserError
from bert_jax.training.transplant import transplant


def tree(fill, **heads):
    encoder = {"layers": {"kernel": jnp.full((2, 3), fill)}}
    return {"encoder": encoder} | {
        name: {"kernel": jnp.full(shape, fill), "bias": jnp.full(shape[-1:], fill)}
        for name, shape in heads.items()
    }


def test_a_new_head_is_initialised_and_an_old_one_left():
    fresh = tree(0.0, pooler=(3, 3), classifier=(3, 2))
    source = tree(1.0, pooler=(3, 3), mlm_head=(3, 9))
    params, notes = transplant(fresh, source, "runs/base")
    expected = tree(1.0, pooler=(3, 3)) | {"classifier": fresh["classifier"]}
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, expected))
    assert notes == [
        "not in runs/base, so initialised: classifier",
        "in runs/base and not used: mlm_head",
    ]


def test_a_head_of_another_shape_is_initialised():
    params, notes = transplant(tree(0.0, classifier=(3, 3)), tree(1.0, classifier=(3, 2)), "a")
    assert float(params["classifier"]["kernel"].sum()) == 0.0
    assert notes == ["not in a, so initialised: classifier"]


def test_another_encoder_is_refused():
    other = {"encoder": {"layers": {"kernel": jnp.zeros((4, 3))}}}
    with pytest.raises(UserError, match="encoder/layers/kernel is 4×3 there and 2×3 here"):
        transplant(tree(0.0), other, "runs/base")
    with pytest.raises(UserError, match="is absent there"):
        transplant(tree(0.0), {"encoder": {}}, "runs/base")
