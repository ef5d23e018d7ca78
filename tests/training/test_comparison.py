"""Means and deviations over seeds, also of metrics that some runs do not have as numbers."""

import math

import pytest

from bert_jax.training.comparison import Point, best_of, table
from bert_jax.training.result import Result


def point(rate: str, *scores: float) -> Point:
    results = [Result(1, "spearman", True, {"spearman": score, "mse": 0.5}) for score in scores]
    return Point((("rate", rate),), tuple(results))


def test_a_metric_that_is_no_number_is_shown_and_never_best():
    good, collapsed = point("1", 0.5, 0.7), point("2", 0.9, math.nan)
    assert best_of([collapsed, good]) is good
    assert math.isnan(collapsed.deviation("spearman"))
    assert good.deviation("spearman") == pytest.approx(0.1414, abs=1e-4)
    assert point("3", 0.5).deviation("spearman") is None
    _, *lines = table([good, collapsed])
    assert [" ".join(line.split()) for line in lines] == [
        "1 2 0.6000 ± 0.1414 0.5000 ± 0.0000",
        "2 2 nan ± nan 0.5000 ± 0.0000",
    ]
