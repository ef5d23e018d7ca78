import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from bert_jax.models.config import sized_config
from bert_jax.models.flops import peak_flops, train_flops_per_token
from bert_jax.models.heads import PretrainingModel, SequenceClassifier
from bert_jax.models.losses import cross_entropy_sum


@pytest.mark.parametrize(
    ("size", "length", "giga"),
    [("base", 128, 0.545), ("base", 512, 0.588), ("large", 128, 1.88), ("large", 512, 1.99)],
)
def test_published_models(size: str, length: int, giga: float) -> None:
    config = sized_config(size, 30522)
    # The share of decoded positions that BERT's own recipe has: 20 of 128, 76 or so of 512.
    flops = train_flops_per_token(config, length, 0.15)
    assert flops / 1e9 == pytest.approx(giga, rel=0.005)


def test_formula_is_within_5_percent_of_what_the_compiler_counts() -> None:
    """The compiler also counts elementwise work, so it should come out a little higher."""
    batch, length, masked = 2, 64, 10
    config = sized_config(
        "L4_H256", 2048, unroll=4, hidden_dropout=0.0, attention_dropout=0.0, max_positions=length
    )
    model = PretrainingModel(config)
    tokens = jnp.zeros((batch, length), jnp.int32)
    positions = jnp.zeros((batch, masked), jnp.int32)
    inputs = (tokens, tokens, tokens[:, 0], positions)
    params = jax.eval_shape(
        lambda key: nn.unbox(model.init(key, *inputs, deterministic=True)), jax.random.key(0)
    )

    # Arguments, not constants: on zeros that it knows, the compiler computes less.
    def loss(params: dict[str, object], inputs: tuple[jax.Array, ...]) -> jax.Array:
        tokens, _, _, positions = inputs
        mlm_logits, pair_logits = model.apply(params, *inputs, deterministic=True)
        mlm_loss, _ = cross_entropy_sum(mlm_logits, positions, positions + 1)
        pair_loss, _ = cross_entropy_sum(pair_logits, tokens[:, 0], tokens[:, 0] + 1)
        return mlm_loss + pair_loss

    compiled = jax.jit(jax.grad(loss)).lower(params, inputs).compile()
    counted = compiled.cost_analysis()["flops"]
    shares = masked / length, (masked + 1) / length
    formula = train_flops_per_token(config, length, *shares) * batch * length
    assert 1.0 <= counted / formula <= 1.05


def test_a_frozen_encoder_is_a_third() -> None:
    batch, length = 2, 64
    config = sized_config(
        "L4_H256", 2048, unroll=4, hidden_dropout=0.0, attention_dropout=0.0, max_positions=length
    )
    model = SequenceClassifier(config, 2)
    tokens = jnp.zeros((batch, length), jnp.int32)
    inputs = (tokens, tokens, tokens[:, 0])
    params = jax.eval_shape(
        lambda key: nn.unbox(model.init(key, *inputs, deterministic=True)), jax.random.key(0)
    )["params"]
    encoder = params.pop("encoder")

    def loss(heads: dict[str, object], encoder: object, inputs: tuple[jax.Array, ...]) -> jax.Array:
        whole = {"params": heads | {"encoder": encoder}}
        logits_B2 = model.apply(whole, *inputs, deterministic=True)
        return cross_entropy_sum(logits_B2, inputs[2], inputs[2] + 1)[0]

    counted = jax.jit(jax.grad(loss)).lower(params, encoder, inputs).compile().cost_analysis()
    formula = train_flops_per_token(config, length, 0.0, 1 / length, trains_encoder=False)
    assert 1.0 <= counted["flops"] / (formula * batch * length) <= 1.08


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_peaks(kind: str, tera: float) -> None:
    assert peak_flops(kind) == tera * 1e12


def test_unknown_chips_have_no_peak() -> None:
    assert peak_flops("cpu") is None
    assert peak_flops("NVIDIA RTX A1000 Laptop GPU") is None
