"""Several sequences in a row come out as they would in rows of their own."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax._src.cudnn import fused_attention_stablehlo

from bert_jax.models.attention import dot_product_attention
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Encoder
from bert_jax.models.fused_attention import cudnn_attention, splash_attention
from bert_jax.models.heads import PretrainingModel, SequenceClassifier
from bert_jax.models.packing import first_positions, positions_within, sequence_numbers
from bert_jax.models.triton_attention import stacked_triton_attention

LENGTH, HEADS, HEAD_WIDTH = 16, 2, 8
# One sequence fills the row; a place is unused in the middle; the row ends in padding, or not.
PACKED = np.array([[16, 0, 0, 0], [5, 0, 1, 7], [3, 4, 5, 4]], np.int32)
CONFIG = BertConfig(
    vocabulary_size=128, layers=2, width=32, heads=2, feed_forward_width=64, max_positions=LENGTH
)


def sequences() -> list[tuple[int, int, slice]]:
    """The row, the place in it and the positions of each sequence."""
    ends = np.cumsum(PACKED, axis=1)
    return [
        (row, place, slice(int(ends[row, place]) - int(length), int(ends[row, place])))
        for (row, place), length in np.ndenumerate(PACKED)
        if length
    ]


def test_numbers_and_positions() -> None:
    numbers = sequence_numbers(PACKED, LENGTH)
    positions, first = positions_within(PACKED, LENGTH), first_positions(PACKED, LENGTH)
    for row, place, where in sequences():
        assert (numbers[row, where] == place).all()
        assert positions[row, where].tolist() == list(range(where.stop - where.start))
        assert first[row, place] == where.start
    assert (numbers[1, 13:] == 4).all()  # padding is of no sequence
    assert positions[1, 13:].tolist() == [0, 1, 2]
    assert first.max() < LENGTH


def cudnn_as_xla(monkeypatch: pytest.MonkeyPatch) -> Callable[..., jax.Array]:
    """What cuDNN is asked to compute, computed by XLA."""
    attend = jax.nn.dot_product_attention

    def by_xla(*inputs: jax.Array, implementation: str, **others: Any) -> jax.Array:
        assert implementation == "cudnn"
        return attend(*inputs, **others, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    return cudnn_attention


@pytest.mark.parametrize("implementation", ["xla", "splash", "cudnn", "triton"])
def test_no_attention_leaks(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = {
        "xla": lambda: dot_product_attention,
        "splash": lambda: functools.partial(splash_attention, interpret=True),
        "cudnn": lambda: cudnn_as_xla(monkeypatch),
        "triton": lambda: functools.partial(stacked_triton_attention, interpret=True),
    }[implementation]()
    rng = np.random.default_rng(6)
    shape = (len(PACKED), LENGTH, HEADS, HEAD_WIDTH)
    inputs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)]
    weights = rng.normal(size=shape).astype(np.float32)

    @jax.jit
    def differentiate(inputs: list[jax.Array], where: jax.Array) -> Any:
        def weighted(*inputs: jax.Array) -> Any:
            outputs = attend(*inputs, jnp.asarray(PACKED))
            return jnp.sum(outputs * weights, where=where), outputs

        return jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)(*inputs)

    for row, _, where in sequences():
        mine = np.zeros(shape, bool)
        mine[row, where] = True
        gradients, outputs = differentiate(inputs, mine)
        single = [array[row : row + 1, where] for array in inputs]
        length = jnp.array([where.stop - where.start])
        expected, expected_gradients = outputs_and_gradients(single, weights[row, where], length)
        np.testing.assert_allclose(outputs[row, where], expected[0], atol=1e-5)
        for gradient, own in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(gradient[row, where], own[0], atol=1e-5)
            # And nothing from anywhere else, to the last bit.
            assert not np.delete(gradient[row], np.r_[where], axis=0).any()


@jax.jit
def outputs_and_gradients(
    inputs: list[jax.Array], weights: np.ndarray, length: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Of XLA's attention within one sequence."""

    def weighted(*arrays: jax.Array) -> Any:
        outputs = dot_product_attention(*arrays, length)
        return jnp.sum(outputs * weights), outputs

    gradients, outputs = jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)(*inputs)
    return outputs, gradients


def test_cudnn_is_given_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    array = jax.ShapeDtypeStruct((2, 128, 4, 64), "bfloat16")
    lengths = jax.ShapeDtypeStruct((2, 5), "int32")
    traced = jax.jit(cudnn_attention).trace(array, array, array, lengths)
    assert "__cudnn$fmhaScaleBiasSoftmax" in traced.lower(lowering_platforms=("cuda",)).as_text()


def initial(model: nn.Module, *inputs: np.ndarray) -> Any:
    """Parameters without zeros and ones, which would hide what they multiply."""
    initialise = functools.partial(model.init, deterministic=True)
    params = nn.unbox(jax.jit(initialise)(jax.random.key(0), *inputs))
    rng = np.random.default_rng(8)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape), params)


IDS = np.random.default_rng(7).integers(0, 128, (*PACKED.shape[:1], LENGTH), np.int32)
SEGMENTS = IDS % 2


def alone(row: int, where: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sequence in a row of its own, of the same length, so that one program serves all."""
    padding = ((0, 0), (0, LENGTH - (where.stop - where.start)))
    ids, segments = (np.pad(array[row : row + 1, where], padding) for array in (IDS, SEGMENTS))
    return ids, segments, np.array([where.stop - where.start])


@pytest.mark.parametrize(("unroll", "with_pooler"), [(1, True), (2, True), (1, False)])
def test_a_classifier_scores_each_sequence(unroll: int, with_pooler: bool) -> None:
    model = SequenceClassifier(dataclasses.replace(CONFIG, unroll=unroll), 3, with_pooler)
    params = initial(model, IDS, SEGMENTS, PACKED[:, 0])
    score = jax.jit(functools.partial(model.apply, deterministic=True))
    packed = score(params, IDS, SEGMENTS, PACKED)
    assert packed.shape == (*PACKED.shape, 3)
    for row, place, where in sequences():
        expected = score(params, *alone(row, where))
        np.testing.assert_allclose(packed[row, place], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("unroll", "next_sentence"), [(1, False), (2, False), (1, True), (2, True)]
)
def test_both_heads_read_a_sequence_of_its_own(unroll: int, next_sentence: bool) -> None:
    model = PretrainingModel(dataclasses.replace(CONFIG, unroll=unroll), next_sentence)
    positions = np.tile(np.arange(0, LENGTH, 2, dtype=np.int32), (len(IDS), 1))
    params = initial(model, IDS, SEGMENTS, PACKED[:, 0], positions)
    score = jax.jit(functools.partial(model.apply, deterministic=True))
    packed, packed_pairs = score(params, IDS, SEGMENTS, PACKED, positions)
    for row, place, where in sequences():
        asked = [place for place in positions[row] if where.start <= place < where.stop]
        own = np.zeros_like(positions[:1])
        own[0, : len(asked)] = np.array(asked) - where.start
        expected, expected_pairs = score(params, *alone(row, where), own)
        if next_sentence:
            np.testing.assert_allclose(packed_pairs[row, place], expected_pairs[0], atol=2e-5)
        np.testing.assert_allclose(
            packed[row, [place // 2 for place in asked]], expected[0, : len(asked)], atol=2e-5
        )


def test_all_hidden_states_of_packed_rows() -> None:
    model = Encoder(CONFIG)
    params = initial(model, IDS, SEGMENTS, PACKED[:, 0])
    states = jax.jit(functools.partial(model.apply, deterministic=True, all_hidden_states=True))
    packed = states(params, IDS, SEGMENTS, PACKED)
    for row, _, where in sequences():
        ids, segments, length = alone(row, where)
        expected = states(params, ids, segments, length)[:, 0, : length[0]]
        np.testing.assert_allclose(packed[:, row, where], expected, atol=1e-5)
