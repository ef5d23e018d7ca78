"""Metrics of predictions for whole texts, by scikit-learn and SciPy.

Shapes: N examples, T labels.
"""

import math
import warnings
from typing import Any

import numpy as np


def score_classes(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """Metrics of single classes.

    Args:
      truth: int [N].
      predicted: int [N].
      classes: how many there are; one that never occurs counts as 0 in macro averages.

    Returns:
      ``accuracy``, ``matthews_correlation``, macro and micro ``precision``, ``recall`` and ``f1``
      as ``macro_f1``; of two classes also the ``f1`` of the second, as GLUE has it.
    """
    from sklearn import metrics  # it takes a second to import, and not every command needs it

    scores = {
        "accuracy": float(metrics.accuracy_score(truth, predicted)),
        "matthews_correlation": float(metrics.matthews_corrcoef(truth, predicted)),
        **_averages(truth, predicted, np.arange(classes)),
    }
    if classes == 2:
        scores["f1"] = float(metrics.f1_score(truth, predicted, zero_division=0))
    return scores


def score_label_sets(truth_NT: np.ndarray, predicted_NT: np.ndarray) -> dict[str, float]:
    """Metrics of sets of labels.

    Args:
      truth_NT: int, 1 where an example has a label.
      predicted_NT: int, 1 where it is predicted.

    Returns:
      ``accuracy``, of whole sets, and macro and micro ``precision``, ``recall`` and ``f1``.
    """
    from sklearn import metrics

    accuracy = float(metrics.accuracy_score(truth_NT, predicted_NT))
    # A single label is to scikit-learn one of two classes, of which only having it counts here.
    labels = np.array([1]) if truth_NT.shape[1] == 1 else None
    return {"accuracy": accuracy, **_averages(truth_NT, predicted_NT, labels)}


def score_values(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics of predicted numbers: ``pearson``, ``spearman`` and ``mse``.

    A correlation is NaN where the truth or the predictions are constant, or a single number.

    Args:
      truth: float [N].
      predicted: float [N].
    """
    from scipy import stats
    from sklearn import metrics

    pearson = spearman = math.nan
    if len(truth) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            pearson = float(stats.pearsonr(truth, predicted).statistic)
            spearman = float(stats.spearmanr(truth, predicted).statistic)
    return {
        "pearson": pearson,
        "spearman": spearman,
        "mse": float(metrics.mean_squared_error(truth, predicted)),
    }


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    """How often each class (a row) was taken for each (a column)."""
    from sklearn import metrics

    matrix: list[list[int]] = metrics.confusion_matrix(
        truth, predicted, labels=np.arange(classes)
    ).tolist()
    return matrix


def _averages(truth: Any, predicted: Any, labels: np.ndarray | None) -> dict[str, float]:
    from sklearn import metrics

    scores: dict[str, float] = {}
    for average in ("macro", "micro"):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            truth, predicted, labels=labels, average=average, zero_division=0
        )
        scores |= {
            f"{average}_precision": float(precision),
            f"{average}_recall": float(recall),
            f"{average}_f1": float(f1),
        }
    return scores
