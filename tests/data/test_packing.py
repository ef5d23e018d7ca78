"""Packing keeps every sequence whole, and a row is a function of its number."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.packing import PackingPlan, pack, pack_batch

LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=80).map(np.array)


@given(LENGTHS, st.integers(1, 6), st.integers(1, 12) | st.none())
def test_rows_hold_no_more_than_they_can(lengths, most, rows):
    row_of = pack(lengths, 24, most, rows)
    placed = row_of >= 0
    assert (np.bincount(row_of[placed], weights=lengths[placed]) <= 24).all()
    assert (np.bincount(row_of[placed]) <= most).all()
    used = row_of.max() + 1
    assert set(row_of[placed]) == set(range(used))
    if rows is None:
        assert placed.all()
    else:
        assert used <= rows
        # What was left out would have needed another row when its turn came.
        assert placed.all() or used == rows


def test_the_fullest_row_with_room_is_taken():
    row_of = pack(np.array([2, 5, 7, 1, 4]), 10, most=3)
    assert row_of.tolist() == [0, 1, 0, 0, 1]


def make_plan(epoch):
    lengths = np.random.default_rng(0).integers(3, 40, epoch)
    order = np.random.default_rng(1).permutation(epoch)  # an epoch's own order

    def lengths_of(numbers):
        return lengths[order[numbers % epoch]]

    return PackingPlan(lengths_of, epoch, 64, 6, seed=1, purpose="test"), lengths_of


def test_rows_do_not_depend_on_how_they_are_asked_for():
    plan, _ = make_plan(10_000)
    window = plan.rows_per_epoch // 5
    bounds = (window - 300, window, window + 120, 2 * window + 200)
    numbers, row_of = plan.rows(bounds[0], bounds[-1] - bounds[0])
    parts = [plan.rows(first, end - first) for first, end in pairwise(bounds)]
    assert np.concatenate([part[0] for part in parts]).tolist() == numbers.tolist()
    shifted = [part[1] + start - bounds[0] for part, start in zip(parts, bounds, strict=False)]
    assert np.concatenate(shifted).tolist() == row_of.tolist()
    assert (np.diff(row_of) >= 0).all()
    assert row_of.min() >= 0 and row_of.max() < bounds[-1] - bounds[0]
    assert len(np.unique(row_of)) > 0.97 * (bounds[-1] - bounds[0])


@pytest.mark.parametrize("epoch", [1, 7, 300, 2048])
def test_a_short_epoch_is_packed_exactly(epoch):
    plan, lengths_of = make_plan(epoch)
    for number in range(3):
        first = number * plan.rows_per_epoch
        numbers, row_of = plan.rows(first, plan.rows_per_epoch)
        assert sorted(numbers) == list(range(number * epoch, (number + 1) * epoch))
        assert np.unique(row_of).tolist() == list(range(plan.rows_per_epoch))
        assert plan.sequences_before(first) == number * epoch
    assert plan.packing.efficiency == pytest.approx(
        lengths_of(np.arange(epoch)).sum() / plan.rows_per_epoch / 64
    )


def test_nearly_every_sequence_of_a_long_epoch_is_read_and_none_twice():
    plan, lengths_of = make_plan(50_000)
    rows = plan.rows_per_epoch
    numbers, row_of = plan.rows(0, rows)
    assert len(np.unique(numbers)) == len(numbers) and numbers.max() == 50_000 - 1
    assert len(numbers) > 0.99 * 50_000
    assert np.bincount(row_of, weights=lengths_of(numbers)).max() <= 64
    efficiency = lengths_of(numbers).sum() / (rows * 64)
    assert efficiency > 0.93
    assert efficiency == pytest.approx(plan.packing.efficiency, abs=0.01)
    assert len(numbers) / rows == pytest.approx(plan.packing.sequences_per_row, rel=0.01)
    assert str(plan.packing).endswith("% of its positions are tokens")


def test_a_batch_is_laid_out_and_can_be_taken_apart():
    rng = np.random.default_rng(2)
    lengths = np.array([3, 5, 1, 6, 2], np.int32)
    columns = np.arange(6) < lengths[:, None]
    batch = {
        "token_ids": np.where(columns, rng.integers(1, 99, (5, 6)), 0).astype(np.int32),
        "segment_ids": columns.astype(np.int32),
        "lengths": lengths,
        "targets": np.arange(10, dtype=np.float32).reshape(5, 2),
    }
    row_of = np.array([0, 0, 2, 2, 2])
    packed = pack_batch(batch, row_of, rows=3, max_length=10, most=4)
    assert packed["lengths"].tolist() == [[3, 5, 0, 0], [0, 0, 0, 0], [1, 6, 2, 0]]
    assert packed["targets"].shape == (3, 4, 2)
    for name in ("token_ids", "segment_ids"):
        assert packed[name].shape == (3, 10) and packed[name].dtype == np.int32
        texts = [batch[name][number, :length] for number, length in enumerate(lengths)]
        assert packed[name][0].tolist() == [*texts[0], *texts[1], 0, 0]
        assert not packed[name][1].any()
        assert packed[name][2].tolist() == [*texts[2], *texts[3], *texts[4], 0]
    np.testing.assert_array_equal(packed["targets"][2, :3], batch["targets"][2:])
    assert not packed["targets"][1].any() and not packed["targets"][0, 2:].any()
