from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.freezing import FreezeOptions, trainable
from bert_jax.training.sharding import unbox

LAYERS = 3


def tree(head: Head = Head.CLASSIFICATION, pooler: bool = True, **settings: Any) -> Any:
    config = BertConfig(
        vocabulary_size=50, layers=LAYERS, width=32, heads=2, feed_forward_width=64, **settings
    )
    described = ModelDescription(config, head, ("no", "yes"), pooler=pooler)
    return jax.eval_shape(lambda key: unbox(described.initialise(key)), jax.random.key(0))


def masks(params: Any, **options: Any) -> dict[str, Any]:
    return flatten_dict(trainable(params, FreezeOptions(**options)), sep="/")


def part(name: str) -> str:
    """embeddings, layers, or a head."""
    return name.removeprefix("encoder/").split("/")[0]


def test_by_default_all_is_trained() -> None:
    assert set(masks(tree()).values()) == {True}


def test_embeddings() -> None:
    for name, mask in masks(tree(), embeddings=True).items():
        assert mask is (part(name) != "embeddings"), name


@pytest.mark.parametrize("frozen", [1, 2, LAYERS])
def test_the_lowest_layers(frozen: int) -> None:
    for name, mask in masks(params := tree(), layers=frozen).items():
        if part(name) != "layers":
            assert mask is True, name
        elif frozen == LAYERS:
            assert mask is False, name
        else:
            assert mask.ndim == len(flatten_dict(params, sep="/")[name].shape), name
            assert mask.ravel().tolist() == [layer >= frozen for layer in range(LAYERS)], name


def test_the_encoder_leaves_heads_and_pooler() -> None:
    for name, mask in masks(tree(), encoder=True).items():
        assert mask is (part(name) in ("pooler", "classifier")), name


def test_lora_trains_its_own_and_the_heads() -> None:
    for options in ({}, {"encoder": True}):
        for name, mask in masks(tree(lora_rank=2), **options).items():
            trained = "/lora_" in name or part(name) in ("pooler", "classifier")
            assert mask is trained, name


def test_adapters_train_layer_norms_too() -> None:
    for name, mask in masks(tree(adapter_width=2)).items():
        heads = part(name) in ("pooler", "classifier")
        assert mask is (heads or "_adapter/" in name or "norm/" in name), name


def test_options_combine() -> None:
    found = masks(tree(adapter_width=2, lora_rank=2), embeddings=True, layers=1)
    assert found["encoder/embeddings/norm/scale"] is False
    assert found["encoder/layers/attention/output/kernel"] is False
    for name in (
        "encoder/layers/attention/query_update/lora_a",
        "encoder/layers/attention_adapter/up/kernel",
        "encoder/layers/feed_forward_norm/bias",
    ):
        assert found[name].ravel().tolist() == [False, True, True], name


def test_a_mapping_is_read() -> None:
    config = ml_collections.ConfigDict({"layers": 2, "embeddings": True})
    assert FreezeOptions.from_mapping(config) == FreezeOptions(embeddings=True, layers=2)
    with pytest.raises(UserError, match=r"freeze\.layer .did you mean freeze\.layers"):
        FreezeOptions.from_mapping({"layer": 2})


def test_what_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match=r"freeze\.layers is -1"):
        FreezeOptions(layers=-1)
    with pytest.raises(UserError, match=r"freeze\.layers is 4, and the model has 3"):
        masks(tree(), layers=4)
    with pytest.raises(UserError, match="leave no parameter to train"):
        masks(tree(Head.NONE, pooler=False), encoder=True)
    other = {"inner": {"kernel": np.zeros((2, 2))}}
    assert masks(other) == {"inner/kernel": True}
    with pytest.raises(UserError, match="no encoder to freeze"):
        masks(other, layers=1)
