"""Batches by length: nothing is lost, nothing depends on what was asked before."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.bucketing import BucketPlan, choose_lengths, padded_length


def padded_positions(lengths, choices):
    return sum(padded_length(length, choices) for length in lengths)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 48), min_size=1, max_size=40),
    st.integers(1, 4),
    st.sampled_from([20.0, 100.0, 1000.0, math.inf]),
)
def test_no_other_choice_of_lengths_wastes_less(lengths, most, batches):
    chosen = choose_lengths(np.array(lengths), 48, batches, most)
    assert len(chosen) <= most
    assert list(chosen) == sorted(set(chosen))
    top = -(-max(lengths) // 4) * 4
    assert chosen[-1] == top
    every = range(4, top, 4)
    compiling = sum(lengths) * 32 / batches  # positions that might be computed meanwhile

    def cost(choices):
        return padded_positions(lengths, choices) + len(choices) * compiling

    best = min(
        cost([*shorter, top])
        for count in range(most)
        for shorter in itertools.combinations(every, count)
    )
    assert cost(chosen) == pytest.approx(best)


def test_few_batches_are_padded_to_few_lengths():
    counts = [len(choose_lengths(LENGTHS, 64, batches)) for batches in (20, 300, 3000, math.inf)]
    assert counts[0] == 1 and counts[-1] == 8
    assert counts == sorted(counts) and len(set(counts)) > 2


def test_a_maximum_that_is_no_multiple_is_kept():
    assert choose_lengths(np.array([3, 21]), 21) == (4, 21)


LENGTHS = np.random.default_rng(0).integers(3, 60, 1000)


@pytest.fixture
def plan():
    return BucketPlan(LENGTHS, choose_lengths(LENGTHS, 64), batch_size=8, seed=5)


def test_an_epoch_has_every_row_once(plan):
    # A window has 32 batches of 8, and 125 windows are exactly 32 epochs of 1000 rows.
    rows = np.concatenate([plan.batch(step)[0] for step in range(125 * 32)])
    np.testing.assert_array_equal(np.bincount(rows), np.full(1000, 32))
    # Within any four windows no row comes more than twice: epochs are not mixed further.
    assert np.bincount(rows[: 4 * 256]).max() <= 2


@pytest.mark.parametrize("rows", [5, 8, 30, 100, 255])
def test_every_row_of_few_comes_as_often(rows):
    plan = BucketPlan(LENGTHS[:rows], choose_lengths(LENGTHS[:rows], 64), batch_size=8, seed=5)
    batches = [plan.batch(step)[0] for step in range(4 * -(-rows // 8))]
    counts = np.bincount(np.concatenate(batches), minlength=rows)
    assert counts.min() >= 3 and counts.max() <= 3 + -(-8 // rows) * 3
    if rows >= 30:
        # Where an epoch ends within a window, a row may come from both.
        assert np.mean([len(set(batch)) for batch in batches]) > 7


def test_batches_hold_rows_of_about_the_same_length(plan):
    spread = [np.ptp(LENGTHS[plan.batch(step)[0]]) for step in range(320)]
    assert np.mean(spread) < 4  # of 57
    real = sum(LENGTHS[plan.batch(step)[0]].sum() for step in range(320))
    padded = sum(8 * plan.batch(step)[1] for step in range(320))
    assert real / padded > 0.8
    assert all(LENGTHS[rows].max() <= length for rows, length in map(plan.batch, range(320)))
    # Long batches and short ones come in no order.
    lengths = np.array([plan.batch(step)[1] for step in range(320)])
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.2


@settings(max_examples=20)
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=6))
def test_a_step_is_reached_from_anywhere(steps):
    choices = choose_lengths(LENGTHS, 64)
    wanderer = BucketPlan(LENGTHS, choices, batch_size=8, seed=5)
    for step in steps:
        rows, length = wanderer.batch(step)
        expected, expected_length = BucketPlan(LENGTHS, choices, 8, seed=5).batch(step)
        np.testing.assert_array_equal(rows, expected)
        assert length == expected_length


def test_another_seed_is_another_order(plan):
    other = BucketPlan(LENGTHS, choose_lengths(LENGTHS, 64), batch_size=8, seed=6)
    assert not np.array_equal(plan.batch(0)[0], other.batch(0)[0])
