import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import PretrainingModel
from bert_jax.models.losses import cross_entropy_sum
from bert_jax.training.optimizers import NAMES, OptimizerConfig, make_optimizer
from bert_jax.training.transformations import decay_mask, scale_by_matrix_trust_ratio

CONFIG = BertConfig(
    vocabulary_size=200, layers=2, width=128, heads=2, feed_forward_width=256, max_positions=16
)
TOKENS = jnp.arange(32, dtype=jnp.int32).reshape(2, 16)
POSITIONS = jnp.array([[1, 5], [3, 15]], jnp.int32)
INPUTS = (TOKENS, TOKENS % 2, jnp.array([16, 10]), POSITIONS)

DECAYED = {
    "encoder/embeddings/word",
    "encoder/embeddings/position",
    "encoder/embeddings/segment",
    "encoder/layers/attention/query_key_value/kernel",
    "encoder/layers/attention/output/kernel",
    "encoder/layers/feed_forward/inner/kernel",
    "encoder/layers/feed_forward/output/kernel",
    "pooler/projection/kernel",
    "mlm_head/transform/kernel",
    "next_sentence_head/kernel",
}
UNDECAYED = {
    "encoder/embeddings/norm/scale",
    "encoder/embeddings/norm/bias",
    "encoder/layers/attention/query_key_value/bias",
    "encoder/layers/attention/output/bias",
    "encoder/layers/attention_norm/scale",
    "encoder/layers/attention_norm/bias",
    "encoder/layers/feed_forward/inner/bias",
    "encoder/layers/feed_forward/output/bias",
    "encoder/layers/feed_forward_norm/scale",
    "encoder/layers/feed_forward_norm/bias",
    "pooler/projection/bias",
    "mlm_head/transform/bias",
    "mlm_head/norm/scale",
    "mlm_head/norm/bias",
    "mlm_head/bias",
    "next_sentence_head/bias",
}


@pytest.fixture(scope="module")
def boxed() -> dict[str, Any]:
    model = PretrainingModel(CONFIG)
    initialise = jax.jit(lambda key: model.init(key, *INPUTS, deterministic=True))
    return initialise(jax.random.key(0))["params"]


def by_name(tree: dict[str, Any]) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def test_decay_rules_cover_every_parameter_of_the_model(boxed: dict[str, Any]) -> None:
    for tree in (nn.unbox(boxed), nn.unbox(decay_mask(boxed))):
        assert set(by_name(tree)) == DECAYED | UNDECAYED
    mask = by_name(decay_mask(nn.unbox(boxed)))
    assert {name for name, decayed in mask.items() if decayed} == DECAYED
    assert by_name(nn.unbox(decay_mask(boxed))) == mask


def test_a_parameter_without_a_rule_is_refused_by_name() -> None:
    params = {"head": {"kernel": jnp.ones((2, 2)), "temperature": jnp.ones(())}}
    optimizer, _ = make_optimizer({}, total_steps=10)
    with pytest.raises(UserError, match="head/temperature"):
        optimizer.init(params)


@pytest.mark.parametrize("name", NAMES)
def test_decay_reaches_exactly_the_decayed_parameters(name: str, boxed: dict[str, Any]) -> None:
    """With a zero gradient the only update is the decay."""
    params = jax.tree.map(lambda leaf: leaf + 1.0, nn.unbox(boxed))
    settings = {"name": name, "learning_rate": 0.5, "weight_decay": 0.25, "warmup_steps": 0}
    optimizer, _ = make_optimizer(settings, total_steps=10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    for leaf_name, update in by_name(updates).items():
        if leaf_name in UNDECAYED:
            assert (update == 0).all(), leaf_name
        # LAMB's trust ratio undoes the size of the decay: norm(param) / norm(decay * param).
        size = 0.5 if name == "lamb" else 0.5 * 0.25
        if leaf_name in DECAYED:
            expected = -size * by_name(params)[leaf_name]
            np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=leaf_name)


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary_padding_stays_zero_in_training(name: str, boxed: dict[str, Any]) -> None:
    model = PretrainingModel(CONFIG)
    settings = {"name": name, "learning_rate": 1e-2, "weight_decay": 0.1, "warmup_steps": 0}
    optimizer, _ = make_optimizer(settings, total_steps=10)

    def loss(params: dict[str, Any], key: jax.Array) -> jax.Array:
        mlm_logits, pair_logits = model.apply(
            {"params": params}, *INPUTS, deterministic=False, rngs={"dropout": key}
        )
        mlm_loss, _ = cross_entropy_sum(mlm_logits, POSITIONS + 50, jnp.ones((2, 2)))
        pair_loss, _ = cross_entropy_sum(pair_logits, jnp.array([0, 1]), jnp.ones(2))
        return mlm_loss + pair_loss

    @jax.jit
    def step(params: dict[str, Any], state: Any, key: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return optax.apply_updates(params, updates), state

    params = start = nn.unbox(boxed)
    state = optimizer.init(params)
    for number in range(4):
        params, state = step(params, state, jax.random.key(number))
    before, after = by_name(start), by_name(params)
    for leaf_name, rows in (("encoder/embeddings/word", 200), ("mlm_head/bias", 200)):
        assert (after[leaf_name][rows:] == 0).all(), leaf_name
        assert (after[leaf_name][:rows] != before[leaf_name][:rows]).any(), leaf_name


def bert_adam_reference(
    param: np.ndarray, gradients: list[np.ndarray], rates: list[float], decay: float
) -> np.ndarray:
    """AdamWeightDecayOptimizer.apply_gradients of google-research/bert, in float64."""
    m = v = np.zeros_like(param)
    for gradient, rate in zip(gradients, rates, strict=True):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        param = param - rate * (m / (np.sqrt(v) + 1e-6) + decay * param)
    return param


def test_adamw_is_berts() -> None:
    rng = np.random.default_rng(0)
    param, bias = rng.normal(size=(3, 4)), rng.normal(size=4)
    gradients = [{"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)} for _ in range(5)]
    settings = {"learning_rate": 0.1, "warmup_steps": 2, "weight_decay": 0.3, "clip_norm": 0.0}
    optimizer, schedule = make_optimizer(settings, total_steps=6)
    params = {"kernel": jnp.asarray(param, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    state = optimizer.init(params)
    for gradient in gradients:
        gradient = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradient)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    rates = [float(schedule(step)) for step in range(5)]
    for name, start, decay in (("kernel", param, 0.3), ("bias", bias, 0.0)):
        expected = bert_adam_reference(start, [g[name] for g in gradients], rates, decay)
        np.testing.assert_allclose(params[name], expected, rtol=1e-5, atol=1e-6)


def test_bias_correction_makes_it_optax_adamw() -> None:
    params = {"kernel": jnp.array([[1.0, -2.0]])}
    gradients = {"kernel": jnp.array([[0.3, 0.1]])}
    settings = {"warmup_steps": 0, "bias_correction": True, "clip_norm": 0.0}
    ours, schedule = make_optimizer(settings, total_steps=5)
    theirs = optax.adamw(schedule, 0.9, 0.999, 1e-6, weight_decay=0.01)
    plain, _ = make_optimizer(settings | {"bias_correction": False}, total_steps=5)
    updates = [each.update(gradients, each.init(params), params)[0] for each in (ours, theirs)]
    np.testing.assert_allclose(updates[0]["kernel"], updates[1]["kernel"], rtol=1e-6)
    uncorrected, _ = plain.update(gradients, plain.init(params), params)
    assert not jnp.allclose(uncorrected["kernel"], updates[0]["kernel"])


@pytest.mark.parametrize(
    "settings", [{}, {"bias_correction": True}, {"name": "lamb"}], ids=["plain", "optax", "lamb"]
)
def test_the_first_moment_is_kept_in_half_the_bytes(
    settings: dict[str, Any], boxed: dict[str, Any]
) -> None:
    params = nn.unbox(boxed)
    rng = np.random.default_rng(2)
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), "f4"), params)
    states, updates = [], []
    for dtype in ("float32", "bfloat16"):
        optimizer, _ = make_optimizer(settings | {"first_moment_dtype": dtype}, total_steps=5)
        state = optimizer.init(params)
        for _ in range(2):
            update, state = jax.jit(optimizer.update)(gradients, state, params)
        states.append(state)
        updates.append(update)

    def moment_bytes(state: Any, moment: str) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(optax.tree.get(state, moment)))

    assert moment_bytes(states[1], "mu") * 2 == moment_bytes(states[0], "mu")
    assert moment_bytes(states[1], "nu") == moment_bytes(states[0], "nu")
    for ours, theirs in zip(*map(jax.tree.leaves, updates), strict=True):
        assert ours.dtype == theirs.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=2**-6, atol=1e-9)
    # Unless the moment was rounded, nothing was saved.
    assert not jnp.array_equal(*(jax.tree.leaves(each)[0] for each in updates))


def test_clipping_by_the_global_norm() -> None:
    params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    gradients = {"kernel": jnp.full((2, 2), 6.0), "bias": jnp.full(2, 8.0)}
    norm = math.sqrt(4 * 36 + 2 * 64)
    clipped, _ = make_optimizer({"clip_norm": 1.0}, total_steps=5)
    free, _ = make_optimizer({"clip_norm": 0.0}, total_steps=5)
    small = jax.tree.map(lambda leaf: leaf / norm, gradients)
    _, state = clipped.update(gradients, clipped.init(params), params)
    _, expected = free.update(small, free.init(params), params)
    for ours, theirs in zip(
        jax.tree.leaves(optax.tree.get(state, "mu")),
        jax.tree.leaves(optax.tree.get(expected, "mu")),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_trust_ratio_is_taken_per_matrix_of_each_layer() -> None:
    rng = np.random.default_rng(1)
    params = {
        "layers": {
            "query_key_value": {
                "kernel": rng.normal(size=(2, 8, 3, 2, 4)),
                "bias": np.ones((2, 3)),
            },
            "output": {"kernel": rng.normal(size=(2, 8, 8))},
        },
        "query_key_value": {"kernel": rng.normal(size=(8, 3, 2, 4))},
        "word": rng.normal(size=(10, 8)),
        "kernel": np.zeros((2, 2)),
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    updates = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params
    )
    transformation = scale_by_matrix_trust_ratio()
    scaled, _ = transformation.update(updates, transformation.init(params), params)

    def expect(scaled: jax.Array, update: jax.Array, param: jax.Array) -> None:
        ratio = np.linalg.norm(np.ravel(param)) / np.linalg.norm(np.ravel(update))
        np.testing.assert_allclose(scaled, update * ratio, rtol=1e-5)

    for layer in range(2):
        arrays = [tree["layers"]["output"]["kernel"][layer] for tree in (scaled, updates, params)]
        expect(*arrays)
        for part in range(3):
            expect(
                *(
                    tree["layers"]["query_key_value"]["kernel"][layer, :, part]
                    for tree in (scaled, updates, params)
                )
            )
    for part in range(3):
        trees = (scaled, updates, params)
        expect(*(tree["query_key_value"]["kernel"][:, part] for tree in trees))
    expect(scaled["word"], updates["word"], params["word"])
    # Undecayed, and of norm zero: left alone.
    for left_alone in (lambda t: t["layers"]["query_key_value"]["bias"], lambda t: t["kernel"]):
        np.testing.assert_array_equal(left_alone(scaled), left_alone(updates))


def layered(rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of three layers between embeddings and a head."""

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layers = {"output": {"kernel": draw(3, 4, 5), "bias": draw(3, 5)}}
    embeddings = {"word": draw(6, 4), "norm": {"scale": draw(4)}}
    encoder = {"embeddings": embeddings, "layers": layers}
    return {"encoder": encoder, "classifier": {"kernel": draw(4, 2), "bias": draw(2)}}


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_layer_decay_equals_an_optimizer_for_each_layer(name: str) -> None:
    rng = np.random.default_rng(3)
    start = layered(rng)
    gradients = [layered(rng) for _ in range(3)]
    settings = {"name": name, "weight_decay": 0.1, "clip_norm": 0.0, "warmup_steps": 1}

    def run(pick: Any, **others: Any) -> dict[str, Any]:
        optimizer, _ = make_optimizer({**settings, **others}, total_steps=5)
        params = pick(start)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(pick(gradient), state, params)
            params = optax.apply_updates(params, updates)
        return params

    result = run(lambda tree: tree, learning_rate=0.1, layer_decay=0.5)
    # Layers 0, 1, 2 of 3: 0.5^3, 0.5^2, 0.5; embeddings 0.5^4; the head 1.
    parts = {
        "embeddings": (lambda tree: tree["encoder"]["embeddings"], 0.5**4),
        "head": (lambda tree: tree["classifier"], 1.0),
    }
    for layer in range(3):
        parts[f"layer {layer}"] = (
            lambda tree, layer=layer: jax.tree.map(
                lambda leaf: leaf[layer], tree["encoder"]["layers"]
            ),
            0.5 ** (3 - layer),
        )
    for part, (pick, factor) in parts.items():
        expected = run(pick, learning_rate=0.1 * factor)
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(
                ours,
                theirs,
                rtol=1e-5,
                atol=1e-6,
                err_msg=part,  # noqa: B023
            ),
            pick(result),
            expected,
        )


def test_layer_decay_needs_layers() -> None:
    params = {"classifier": {"kernel": jnp.ones((2, 2))}}
    optimizer, _ = make_optimizer({"layer_decay": 0.9}, total_steps=5)
    with pytest.raises(UserError, match="no stacked layers are trained"):
        optimizer.update(params, optimizer.init(params), params)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_lora_plus_is_another_learning_rate_for_b(name: str) -> None:
    rng = np.random.default_rng(4)
    shapes = {"lora_a": (3, 4, 2), "lora_b": (3, 2, 5), "kernel": (4, 2)}
    draws = [
        {leaf: jnp.asarray(rng.normal(size=shape), jnp.float32) for leaf, shape in shapes.items()}
        for _ in range(3)
    ]
    start, *gradients = ({"encoder": {"layers": {"update": draw}}} for draw in draws)
    settings = {"name": name, "weight_decay": 0.1, "clip_norm": 0.0, "warmup_steps": 1}

    def run(**others: Any) -> dict[str, Any]:
        optimizer, _ = make_optimizer({**settings, **others}, total_steps=5)
        params, state = start, optimizer.init(start)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params["encoder"]["layers"]["update"]

    result = run(learning_rate=0.01, lora_plus_ratio=16.0)
    expected = run(learning_rate=0.01) | {"lora_b": run(learning_rate=0.16)["lora_b"]}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), result, expected)


def test_lora_plus_needs_lora() -> None:
    params = {"classifier": {"kernel": jnp.ones((2, 2))}}
    optimizer, _ = make_optimizer({"lora_plus_ratio": 16.0}, total_steps=5)
    with pytest.raises(UserError, match="lora_plus_ratio is 16.0, and no LoRA is trained"):
        optimizer.update(params, optimizer.init(params), params)


def rates(total_steps: int, **settings: Any) -> list[float]:
    _, schedule = make_optimizer({"learning_rate": 2.0, **settings}, total_steps)
    return [float(schedule(step)) for step in range(total_steps + 2)]


def test_linear_schedule() -> None:
    expected = [0, 1, 2, 1.5, 1, 0.5, 0, 0]
    np.testing.assert_allclose(rates(6, warmup_steps=2), expected, atol=1e-6)


def test_cosine_schedule_with_a_floor() -> None:
    result = rates(8, schedule="cosine", warmup_share=0.5, final_learning_rate_share=0.1)
    np.testing.assert_allclose(result[:5], [0, 0.5, 1, 1.5, 2], atol=1e-6)
    np.testing.assert_allclose([result[6], *result[8:]], [1.1, 0.2, 0.2], atol=1e-6)


@pytest.mark.parametrize("steps", [0.1, "10%"])
def test_steps_of_warm_up_are_no_share(steps: object) -> None:
    with pytest.raises(UserError, match=f"warmup_steps is {steps!r}; give a whole number"):
        make_optimizer({"warmup_steps": steps}, 100)


def test_warmup_stable_decay_schedule() -> None:
    result = rates(10, schedule="warmup_stable_decay", warmup_steps=2, decay_share=0.4)
    expected = [0, 1, 2, 2, 2, 2, 2, 1.5, 1, 0.5, 0, 0]
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup_stable_decay"])
def test_schedules_without_warmup_or_decay(schedule: str) -> None:
    assert rates(5, schedule=schedule, warmup_steps=0)[0] == 2.0
    all_warmup = rates(4, schedule=schedule, warmup_steps=4, decay_share=0.0)
    np.testing.assert_allclose(all_warmup[:4], [0, 0.5, 1, 1.5])


def test_config_dicts_are_read() -> None:
    config = ml_collections.ConfigDict({"name": "lamb", "learning_rate": 3e-3, "clip_norm": 0.0})
    assert OptimizerConfig.from_mapping(config) == OptimizerConfig(
        name="lamb", learning_rate=3e-3, clip_norm=0.0
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adam"}, "name 'adam' .did you mean 'adamw'"),
        ({"schedule": "cosin"}, "schedule 'cosin' .did you mean 'cosine'"),
        ({"learning_rat": 1}, "key 'learning_rat' .did you mean 'learning_rate'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"first_moment_dtype": "float16"}, "dtype 'float16'.* choose one of float32, bfloat16"),
        ({"first_moment_dtype": "bfloat16", "name": "adafactor"}, "keeps no first moment"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"lora_plus_ratio": 0.5}, "lora_plus_ratio is 0.5"),
        ({"warmup_steps": 101}, "warmup_steps is 101.* 100 steps"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        (
            {"schedule": "warmup_stable_decay", "warmup_share": 0.6, "decay_share": 0.5},
            "decay_share 0.5 take more than the run's 100 steps",
        ),
    ],
)
def test_unusable_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_optimizer(settings, total_steps=100)


def test_a_run_of_no_steps_is_refused() -> None:
    with pytest.raises(UserError, match="total_steps is 0"):
        make_optimizer({}, total_steps=0)
