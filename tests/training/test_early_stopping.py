"""A run ends when its score no longer gets better, and a restart knows it too."""

import pytest

from bert_jax.training.early_stopping import EarlyStopping


@pytest.mark.parametrize("sign", [1, -1])
def test_it_counts_evaluations_without_improvement(sign):
    stopping = EarlyStopping(2, higher_is_better=sign > 0)
    for score, exhausted in [(0.5, False), (0.7, False), (0.7, False), (0.6, True)]:
        stopping.note(0, sign * score)
        assert stopping.exhausted == exhausted
    restarted = EarlyStopping(2, sign > 0, [(0, sign * score) for score in (0.5, 0.7, 0.7)])
    assert not restarted.exhausted
    restarted.note(0, sign * 0.1)
    assert restarted.exhausted


def test_no_patience_is_endless_and_nan_is_no_improvement():
    def exhausted(patience: int, *scores: float) -> bool:
        return EarlyStopping(patience, True, [(0, score) for score in scores]).exhausted

    assert not exhausted(0, 3.0, 2.0, 1.0, 0.0)
    assert exhausted(1, 0.5, float("nan"))
    assert not exhausted(2, float("nan"), 0.5, 0.4, 0.6)


def test_a_phase_is_not_judged_by_the_scores_of_another():
    longer_text = EarlyStopping(2, False, [(0, 1.0), (0, 1.1), (1, 3.0), (1, 2.0), (1, 2.1)])
    assert not longer_text.exhausted
    longer_text.note(1, 2.2)
    assert longer_text.exhausted
