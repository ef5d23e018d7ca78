"""Rows are drawn as pure functions of (seed, row)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.mixture import MixturePlan, Part, parse_mixture
from bert_jax.data.order import shuffled_records
from bert_jax.data.randomness import permutation, random_words, uniforms
from bert_jax.errors import UserError


@given(st.integers(0, 10**12), st.integers(1, 20), st.integers(1, 13), st.integers(0, 19))
def test_random_numbers_of_a_row_do_not_depend_on_its_batch(first_row, rows, draws, row):
    row %= rows
    for draw in (uniforms, random_words):
        together = draw(3, "purpose", first_row, rows, draws)
        alone = draw(3, "purpose", first_row + row, 1, draws)
        assert (together[row] == alone[0]).all()


def test_random_numbers_differ_by_seed_purpose_and_row():
    base = random_words(0, "a", 0, 2, 8)
    assert not (base[0] == base[1]).any()
    assert not (base == random_words(1, "a", 0, 2, 8)).any()
    assert not (base == random_words(0, "b", 0, 2, 8)).any()
    assert abs(uniforms(0, "a", 0, 1000, 100).mean() - 0.5) < 0.005


def test_permutation():
    assert sorted(permutation(0, "p", 3, 100)) == list(range(100))
    assert (permutation(0, "p", 3, 100) != permutation(0, "p", 4, 100)).any()


def test_an_epoch_has_every_record_once_and_the_next_another_order():
    order = shuffled_records(97, np.arange(3 * 97), seed=5)
    for epoch in order.reshape(3, 97):
        assert sorted(epoch) == list(range(97))
    assert (order[:97] != order[97:194]).any()
    assert (shuffled_records(97, np.arange(50, 150), seed=5) == order[50:150]).all()
    assert (shuffled_records(97, np.arange(97), seed=6) != order[:97]).any()
    assert shuffled_records(97, np.array([10**12]), seed=5) < 97


@given(
    st.lists(st.floats(0.002, 1.0) | st.floats(1e-9, 1e-3), min_size=1, max_size=5),
    st.integers(0, 10**9),
    st.integers(1, 9000),
)
def test_mixture_rows_are_in_proportion_and_placed_one_after_the_other(weights, first, rows):
    weights = np.array(weights) / sum(weights)
    plan = MixturePlan(weights, seed=1)
    sources, places = plan.assign(first, rows)
    before = plan.counts(first)
    assert before.sum() == first
    assert (
        plan.counts(first + rows) - before == np.bincount(sources, minlength=len(weights))
    ).all()
    for source in range(len(weights)):
        mine = places[sources == source]
        assert sorted(mine) == list(range(before[source], before[source] + len(mine)))
    # Exact up to rounding at every window's end; all of it is the largest's where some are tiny.
    windows = 4096 * (first // 4096)
    errors = abs(plan.counts(windows) - windows * weights)
    assert (np.sort(errors)[:-1] < 2).all()
    assert errors.max() < (len(weights) if weights.min() < 1 / 4096 else 2)


def test_a_source_between_others_may_have_next_to_nothing():
    for weights in ([0.3, 0.00001, 0.69999], [2 / 3, 1e-6, 1 / 3 - 1e-6]):
        plan = MixturePlan(weights, seed=0)
        sources, _ = plan.assign(0, 300_000)
        counts = np.bincount(sources, minlength=3)
        assert counts.sum() == 300_000
        assert (abs(counts - 300_000 * np.array(weights)) < 30).all()  # within a window


def test_mixture_rows_do_not_depend_on_their_batch():
    plan = MixturePlan([0.3, 0.7], seed=2)
    sources, places = plan.assign(4000, 200)
    assert (plan.assign(4050, 100)[0] == sources[50:150]).all()
    assert (plan.assign(4050, 100)[1] == places[50:150]).all()
    assert (MixturePlan([0.3, 0.7], seed=3).assign(4000, 200)[0] != sources).any()


def test_parse_mixture():
    assert parse_mixture("data/wiki") == (Part("data/wiki", 1.0),)
    assert parse_mixture("gs://bucket/wiki") == (Part("gs://bucket/wiki", 1.0),)
    assert parse_mixture("a:3+b:1") == (Part("a", 0.75), Part("b", 0.25))


def test_a_directory_may_be_called_as_a_mixture_is(tmp_path):
    both = tmp_path / "wiki+books:2"
    both.mkdir()
    assert parse_mixture(str(both)) == (Part(str(both), 1.0),)
    with pytest.raises(UserError, match="names a corpus twice"):
        parse_mixture(f"{tmp_path}:1+{tmp_path}/:2")


@pytest.mark.parametrize("text", ["a+b", "a:0.5+b", "a:1+a:2", "a:-1+b:2", ":1+b:1", "a:nan+b:1"])
def test_wrong_mixtures_are_refused(text):
    with pytest.raises(UserError, match="corpus="):
        parse_mixture(text)
