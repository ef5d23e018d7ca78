"""A run ends when its score no longer gets better, and a restart knows it too."""

import pytest

from bert_jax.training.early_stopping import EarlyStopping


@pytest.mark.parametrize("sign", [1, -1])
def test_it_counts_evaluations_without_improvement(sign):
    stopping = EarlyStopping(2, higher_is_better=sign > 0)
    for score, exhausted in [(0.5, False), (0.7, False), (0.7, False), (0.6, True)]:
        stopping.note(sign * score)
        assert stopping.exhausted == exhausted
    restarted = EarlyStopping(2, sign > 0, [sign * score for score in (0.5, 0.7, 0.7)])
    assert not restarted.exhausted
    restarted.note(sign * 0.1)
    assert restarted.exhausted


def test_no_patience_is_endless_and_nan_is_no_improvement():
    endless = EarlyStopping(0, True, [3.0, 2.0, 1.0, 0.0])
    assert not endless.exhausted
    assert EarlyStopping(1, True, [0.5, float("nan")]).exhausted
    assert not EarlyStopping(2, True, [float("nan"), 0.5, 0.4, 0.6]).exhausted
