"""The model computes what transformers' PyTorch BertForPreTraining computes, gradients included.

Both get the same random weights (LayerNorms too) and the same padded pairs, in float32 and without
dropout.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import linen as nn

from bert_jax.formats.naming import TIED, to_tensors
from bert_jax.models.config import BertConfig, count_parameters, sized_config
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.heads import PretrainingModel
from bert_jax.models.losses import cross_entropy_sum

TOLERANCE = 1e-5

# Vocabulary 300 is stored as 384 rows; the head width is not the usual 64.
CONFIGS = {
    "shallow": BertConfig(
        vocabulary_size=300,
        layers=2,
        width=96,
        heads=4,
        feed_forward_width=160,
        max_positions=40,
        segments=3,
    ),
    "deep": BertConfig(
        vocabulary_size=256,
        layers=12,
        width=64,
        heads=1,
        feed_forward_width=256,
        max_positions=24,
        unroll=4,
    ),
}


def torch_config(config: BertConfig) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=config.vocabulary_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.feed_forward_width,
        max_position_embeddings=config.max_positions,
        type_vocab_size=config.segments,
        attn_implementation="eager",
    )


def description(config: BertConfig) -> ModelDescription:
    return ModelDescription(config, Head.PRETRAINING)


def random_params(model: PretrainingModel, rng: np.random.Generator) -> dict[str, Any]:
    """Every parameter random: LayerNorm scales around 1, the vocabulary's padding too."""
    abstract = jax.eval_shape(
        lambda key: model.init(
            key,
            *(jnp.zeros(shape, jnp.int32) for shape in ((1, 2), (1, 2), (1,), (1, 1))),
            deterministic=True,
        ),
        jax.random.key(0),
    )["params"]

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(centre, 0.1, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(abstract))


def padded_pairs(config: BertConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, length, masked = 5, config.max_positions - 4, 4
    lengths = np.array([length, length - 1, length // 2, 9, 5], np.int32)
    columns = np.arange(length)
    real = columns < lengths[:, None]
    second_starts = lengths // 2
    segments = np.where(columns >= second_starts[:, None], config.segments - 1, 0) * real
    positions = np.stack([rng.choice(n, masked, replace=False) for n in lengths])
    weights = np.ones((rows, masked), np.float32)
    weights[-1, 2:] = 0
    positions[-1, 2:] = 0
    return {
        "token_ids": rng.integers(0, config.vocabulary_size, (rows, length)) * real,
        "segment_ids": segments,
        "lengths": lengths,
        "real": real,
        "masked_positions": positions,
        "masked_labels": rng.integers(0, config.vocabulary_size, (rows, masked)),
        "masked_weights": weights,
        "next_sentence_label": rng.integers(0, 2, rows),
    }


def assert_close(
    name: str, ours: Any, theirs: Any, tolerance: float = TOLERANCE, least: float = 1.0
) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    allowed = tolerance * max(least, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=allowed, err_msg=name)


@pytest.fixture(scope="module", params=CONFIGS)
def both(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Runs both models once, forward and backward."""
    config = CONFIGS[request.param]
    rng = np.random.default_rng(17)
    model = PretrainingModel(config)
    params = random_params(model, rng)
    batch = padded_pairs(config, rng)
    inputs = [batch[name] for name in ("token_ids", "segment_ids", "lengths")]

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        mlm_logits, next_sentence_logits = model.apply(
            {"params": params}, *inputs, batch["masked_positions"], deterministic=True
        )
        mlm_total, mlm_weight = cross_entropy_sum(
            mlm_logits, batch["masked_labels"], batch["masked_weights"]
        )
        next_total, next_weight = cross_entropy_sum(
            next_sentence_logits, batch["next_sentence_label"], np.ones(len(batch["lengths"]))
        )
        total = mlm_total / mlm_weight + next_total / next_weight
        return total, (mlm_logits, next_sentence_logits)

    @jax.jit
    def run(params: Any) -> dict[str, Any]:
        (total, (mlm_logits, next_sentence_logits)), gradients = jax.value_and_grad(
            loss, has_aux=True
        )(params)
        bound = model.bind({"params": params})
        hidden_states = bound.encoder(*inputs, deterministic=True, all_hidden_states=True)
        return {
            "loss": total,
            "gradients": gradients,
            "mlm_logits": mlm_logits,
            "next_sentence_logits": next_sentence_logits,
            "hidden_states": hidden_states,
            "pooled": bound.pooler(hidden_states[-1][:, 0]),
        }

    with jax.default_matmul_precision("highest"):
        ours = run(params)

    reference = transformers.BertForPreTraining(torch_config(config)).eval()
    state = {
        name: torch.from_numpy(array.copy())
        for name, array in to_tensors(params, description(config)).items()
    }
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert set(missing) <= TIED.keys()
    assert not unexpected
    rows = np.arange(len(batch["lengths"]))[:, None]
    labels = np.full(batch["token_ids"].shape, -100)
    used = batch["masked_weights"] > 0
    labels[np.broadcast_to(rows, used.shape)[used], batch["masked_positions"][used]] = batch[
        "masked_labels"
    ][used]
    theirs = reference(
        input_ids=torch.from_numpy(batch["token_ids"]),
        token_type_ids=torch.from_numpy(batch["segment_ids"]),
        attention_mask=torch.from_numpy(batch["real"].astype(np.int64)),
        labels=torch.from_numpy(labels),
        next_sentence_label=torch.from_numpy(batch["next_sentence_label"]),
        output_hidden_states=True,
    )
    theirs.loss.backward()
    with torch.no_grad():
        pooled = reference.bert.pooler(theirs.hidden_states[-1])
    return {
        "config": config,
        "batch": batch,
        "ours": ours,
        "theirs": theirs,
        "pooled": pooled,
        "reference": reference,
    }


def test_every_hidden_state(both: dict[str, Any]) -> None:
    real = both["batch"]["real"]
    ours, theirs = both["ours"]["hidden_states"], both["theirs"].hidden_states
    assert len(ours) == len(theirs) == both["config"].layers + 1
    for layer, (our_state, their_state) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(f"state {layer}", our_state[real], their_state.detach().numpy()[real])


def test_pooler(both: dict[str, Any]) -> None:
    assert_close("pooled", both["ours"]["pooled"], both["pooled"])


def test_mlm_logits_at_the_masked_positions(both: dict[str, Any]) -> None:
    batch, vocabulary = both["batch"], both["config"].vocabulary_size
    theirs = both["theirs"].prediction_logits.detach().numpy()
    theirs = np.take_along_axis(theirs, batch["masked_positions"][..., None], axis=1)
    assert_close("mlm logits", both["ours"]["mlm_logits"][..., :vocabulary], theirs)


def test_next_sentence_logits(both: dict[str, Any]) -> None:
    theirs = both["theirs"].seq_relationship_logits.detach()
    assert_close("next-sentence logits", both["ours"]["next_sentence_logits"], theirs)


def test_loss(both: dict[str, Any]) -> None:
    assert_close("loss", both["ours"]["loss"], both["theirs"].loss.detach())


def test_gradient_of_every_parameter(both: dict[str, Any]) -> None:
    ours = to_tensors(both["ours"]["gradients"], description(both["config"]))
    # named_parameters gives a tied parameter once, under the name of its first owner.
    theirs = dict(both["reference"].named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        # Gradients are small, so they are measured against their own size; but those of the key
        # biases are zero in exact arithmetic, and have none.
        assert_close(name, ours[name], parameter.grad, 10 * TOLERANCE, least=1e-3)


@pytest.mark.parametrize("width", [128, 256, 512, 768])
@pytest.mark.parametrize("layers", [2, 4, 6, 8, 10, 12])
def test_parameter_counts_of_the_miniatures(layers: int, width: int) -> None:
    config = sized_config(f"L{layers}_H{width}", vocabulary_size=30522)
    with torch.device("meta"):
        reference = transformers.BertForPreTraining(torch_config(config))
    assert count_parameters(config) == reference.num_parameters()
