"""Metrics where there is little to score; elsewhere they are scikit-learn's and SciPy's."""

import math

import numpy as np
import pytest
from sklearn import metrics

from bert_jax.tasks.sequence_scores import score_label_sets, score_values


@pytest.mark.parametrize("truth, predicted", [([2.0], [1.0]), ([1, 2, 3], [4, 4, 4])])
def test_correlations_that_there_are_not_are_nan(truth, predicted):
    scores = score_values(np.array(truth, float), np.array(predicted, float))
    assert math.isnan(scores["pearson"]) and math.isnan(scores["spearman"])
    assert scores["mse"] == np.mean(np.square(np.subtract(truth, predicted)))


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_each_label_counts_by_those_who_have_it(labels):
    truth, predicted = np.random.default_rng(labels).integers(0, 2, (2, 40, labels))
    scores = score_label_sets(truth, predicted)
    of_each = [metrics.f1_score(truth[:, i], predicted[:, i]) for i in range(labels)]
    assert scores["macro_f1"] == pytest.approx(np.mean(of_each))
    assert scores["micro_recall"] == pytest.approx((truth & predicted).sum() / truth.sum())
    assert scores["accuracy"] == np.mean((truth == predicted).all(axis=1))
