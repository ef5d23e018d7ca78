import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from flax import linen as nn

from bert_jax.models.layers import Dropout, LayerNorm, Projection, contract, dropout, gelu

IMPLEMENTATIONS = ["threefry2x32", "rbg", "unsafe_rbg"]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_asked_share_and_is_unbiased(impl: str, rate: float) -> None:
    dropped = np.asarray(dropout(jnp.ones((2000, 2000)), rate, jax.random.key(3, impl=impl)))
    kept = dropped != 0
    # Four deviations of the share over four million draws are at most 1e-3.
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation
    scale = np.unique(dropped[kept])
    assert scale.size == 1
    # 1 / scale is the share that is kept in expectation; the draw above only comes near it.
    assert abs(1 / scale[0] - (1 - rate)) < 1e-5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_is_independent_between_elements(rate: float) -> None:
    """At any distance up to four million: no correlation is larger than chance makes it."""
    size = 2**23
    dropped = np.asarray(dropout(jnp.ones(size), rate, jax.random.key(4))) == 0
    spectrum = np.fft.rfft((dropped - rate).astype(np.float32), 2 * size)
    sums = np.fft.irfft(np.abs(spectrum) ** 2)[1 : size // 2]
    deviations = sums / (rate * (1 - rate) * np.sqrt(size - np.arange(1, size // 2)))
    # Of so many, chance makes the largest some 5.3, and more than 6.5 in one of 3,000 trials.
    assert np.abs(deviations).max() < 6.5


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_is_independent_between_keys(impl: str, rate: float) -> None:
    dropped = [
        np.asarray(dropout(jnp.ones((1024, 1024)), rate, jax.random.key(seed, impl=impl))) == 0
        for seed in range(4)
    ]
    for first, second in itertools.combinations(dropped, 2):
        together = int((first & second).sum())
        assert scipy.stats.binomtest(together, first.size, rate**2).pvalue > 1e-6


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_scatters_over_rows_and_columns_as_chance_does(rate: float) -> None:
    dropped = np.asarray(dropout(jnp.ones((2048, 512)), rate, jax.random.key(6))) == 0
    for axis in (0, 1):
        counts, trials = dropped.sum(axis=axis), dropped.shape[axis]
        spread = np.sum((counts - trials * rate) ** 2) / (trials * rate * (1 - rate))
        assert 1e-6 < scipy.stats.chi2.cdf(spread, counts.size) < 1 - 1e-6


def test_dropout_depends_on_the_key_alone() -> None:
    ones = jnp.ones((64, 64))
    first, second = (dropout(ones, 0.3, jax.random.key(seed)) for seed in (1, 2))
    assert jnp.array_equal(first, dropout(ones, 0.3, jax.random.key(1)))
    assert not jnp.array_equal(first, second)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_keeps_the_type_and_drops_gradients_alike(dtype: str) -> None:
    key = jax.random.key(0)
    inputs = jnp.linspace(1, 2, 1000, dtype=dtype)
    outputs = dropout(inputs, 0.3, key)
    assert outputs.dtype == inputs.dtype
    gradient = jax.grad(lambda x: dropout(x, 0.3, key).sum())(inputs)
    assert jnp.array_equal(gradient == 0, outputs == 0)
    assert jnp.array_equal(gradient, dropout(jnp.ones(1000, dtype), 0.3, key))
    assert 0 < (gradient == 0).sum() < 1000


def test_dropout_drops_non_finite_values() -> None:
    outputs = dropout(jnp.full(1000, jnp.inf), 0.5, jax.random.key(0))
    assert not jnp.isnan(outputs).any()


@pytest.mark.parametrize(("rate", "deterministic"), [(0.0, False), (0.5, True)])
def test_dropout_module_needs_no_key_when_off(rate: float, deterministic: bool) -> None:
    inputs = jnp.arange(10.0)
    outputs = Dropout(rate).apply({}, inputs, deterministic=deterministic)
    assert jnp.array_equal(outputs, inputs)


def test_gelu_is_exact() -> None:
    inputs = np.linspace(-8, 8, 4001, dtype=np.float32)
    exact = inputs.astype(np.float64) * scipy.stats.norm.cdf(inputs.astype(np.float64))
    np.testing.assert_allclose(gelu(jnp.asarray(inputs)), exact, atol=2e-6)


def test_gelu_gradient_is_exact() -> None:
    inputs = np.linspace(-8, 8, 4001)
    exact = scipy.stats.norm.cdf(inputs) + inputs * scipy.stats.norm.pdf(inputs)
    gradient = jax.vmap(jax.grad(gelu))(jnp.asarray(inputs, jnp.float32))
    np.testing.assert_allclose(gradient, exact, atol=2e-6)


def test_layer_norm_equals_torch_also_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(100.0, 0.5, (3, 5, 64)).astype(np.float32)
    scale, bias = rng.normal(1, 0.3, 64), rng.normal(0, 0.3, 64)
    params = {"scale": jnp.asarray(scale, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    ours = LayerNorm(1e-12, jnp.dtype("float32")).apply({"params": params}, inputs)
    theirs = torch.nn.functional.layer_norm(
        torch.from_numpy(inputs.astype(np.float64)),
        (64,),
        torch.from_numpy(scale),
        torch.from_numpy(bias),
        1e-12,
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_layer_norm_takes_bfloat16_statistics_in_float32() -> None:
    inputs = jnp.asarray(np.random.default_rng(0).normal(3, 1, (4, 512)), jnp.bfloat16)
    module = LayerNorm(1e-12, jnp.dtype("bfloat16"))
    params = {"scale": jnp.ones(512), "bias": jnp.zeros(512)}
    outputs = module.apply({"params": params}, inputs)
    exact = np.asarray(inputs, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    assert outputs.dtype == jnp.bfloat16
    # Half a unit in the last of bfloat16's 8 bits, and nothing lost before it.
    np.testing.assert_allclose(np.asarray(outputs, np.float64), exact, rtol=2**-8, atol=1e-6)


def test_projection_contracts_trailing_axes_in_the_asked_type() -> None:
    module = Projection(
        shape=(2, 3, 5),
        axes=("heads", "head_width", "width"),
        stddev=1.0,
        dtype=jnp.dtype("bfloat16"),
        contracted=2,
    )
    inputs = jax.random.normal(jax.random.key(0), (4, 7, 2, 3))
    params = module.init(jax.random.key(1), inputs)["params"]
    kernel, bias = params["kernel"], params["bias"]
    assert (kernel.names, bias.names) == (("heads", "head_width", "width"), ("width",))
    assert kernel.value.dtype == bias.value.dtype == jnp.float32
    outputs = module.apply({"params": params}, inputs)
    assert outputs.dtype == jnp.bfloat16
    expected = jnp.einsum("...nk,nkd->...d", inputs, kernel.value)
    np.testing.assert_allclose(outputs.astype(jnp.float32), expected, atol=0.1)


def test_kernels_start_from_a_normal_cut_at_two_deviations() -> None:
    module = Projection((300, 300), ("width", None), 0.02, jnp.dtype("float32"))
    kernel = module.init(jax.random.key(0), jnp.zeros((1, 300)))["params"]["kernel"].value
    assert 0.0395 < jnp.abs(kernel).max() <= 0.04
    # The deviation of a unit normal cut at two is 0.8796.
    assert jnp.std(kernel) == pytest.approx(0.02 * 0.8796, rel=0.01)


# The inputs are larger than the outputs in one case, and smaller in the other.
@pytest.mark.parametrize(
    ("inputs", "kernel", "axes"), [((3, 5, 4), (4, 2, 6), 1), ((3, 5, 4, 6), (4, 6, 7), 2)]
)
def test_contract_is_tensordot_with_its_gradients(
    inputs: tuple[int, ...], kernel: tuple[int, ...], axes: int
) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (inputs, kernel))

    def loss(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda x, w: jnp.sum(jnp.sin(product(x, w, axes)))

    np.testing.assert_allclose(contract(x, w, axes), jnp.tensordot(x, w, axes), rtol=1e-6)
    ours = jax.grad(loss(contract), argnums=(0, 1))(x, w)
    theirs = jax.grad(loss(jnp.tensordot), argnums=(0, 1))(x, w)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_bias_is_summed_in_float32() -> None:
    module = Projection((4, 3), (None, None), 0.02, jnp.dtype("bfloat16"))
    tokens = 4097  # which bfloat16 has not
    inputs = jnp.ones((tokens, 4), jnp.bfloat16)
    params = module.init(jax.random.key(0), inputs)

    def total(params: dict[str, dict[str, jax.Array]]) -> jax.Array:
        return jnp.sum(module.apply(params, inputs).astype(jnp.float32))

    bias_gradient = jax.jit(jax.grad(total))(params)["params"]["bias"]
    np.testing.assert_array_equal(nn.unbox(bias_gradient), tokens)


def test_contract_can_give_float32_of_bfloat16() -> None:
    x, w = jnp.full((4, 300), 1.01, jnp.bfloat16), jnp.full((300, 5), 1.01, jnp.bfloat16)

    def total(x: jax.Array, w: jax.Array) -> jax.Array:
        product = contract(x, w, 1, jnp.dtype("float32"))
        assert product.dtype == jnp.float32
        return product.sum()

    gradients = jax.grad(total, argnums=(0, 1))(x, w)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_allclose(gradients[1].astype(jnp.float32), 4 * 1.01, rtol=2**-7)


def test_a_part_of_a_projection_is_an_entry_of_the_whole() -> None:
    projection = Projection((4, 3, 2, 5), ("a", "b", "c", "d"), 0.5, jnp.dtype("float32"))
    inputs = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    variables = projection.init(jax.random.key(0), inputs)
    whole = projection.apply(variables, inputs)
    for number in range(3):
        part = projection.apply(variables, number, inputs, method="part")
        np.testing.assert_allclose(part, whole[:, :, number], rtol=1e-5, atol=1e-6)
