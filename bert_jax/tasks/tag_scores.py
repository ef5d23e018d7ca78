"""Precision, recall and F1 of entities, as ``seqeval`` counts them."""

from collections.abc import Sequence
from typing import NamedTuple

from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support


class EntityScores(NamedTuple):
    """How well entities were found; 0 where there is nothing to divide by.

    Attributes:
      precision: the share of predicted entities that are right.
      recall: the share of true entities that were predicted.
      f1: the harmonic mean of the two.
      support: how many true entities there are.
    """

    precision: float
    recall: float
    f1: float
    support: int


def score_entities(
    expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> tuple[EntityScores, dict[str, EntityScores]]:
    """Scores tags by the entities that they make.

    An entity is right if its first word, its last word and its type are. Tags are read as
    ``conlleval.pl`` reads them, which is seqeval's default mode: an I that follows no entity of its
    type starts one.

    Args:
      expected: the true tags of each sentence.
      predicted: the predicted tags of each sentence, as many.

    Returns:
      The scores over all entities (micro average), and by type.
    """
    true, guessed = [list(tags) for tags in expected], [list(tags) for tags in predicted]
    overall = precision_recall_fscore_support(true, guessed, average="micro", zero_division=0)
    of_types = precision_recall_fscore_support(true, guessed, average=None, zero_division=0)
    # In this order seqeval gives the scores of types, without their names.
    types = sorted({entity[0] for tags in (true, guessed) for entity in get_entities(tags)})
    by_type = dict(zip(types, map(_scores, *of_types), strict=True))
    return _scores(*overall), by_type


def _scores(precision: float, recall: float, f1: float, support: int) -> EntityScores:
    return EntityScores(float(precision), float(recall), float(f1), int(support))
