"""Precision, recall and F1 of entities, as ``seqeval`` counts them."""

from collections.abc import Sequence
from typing import NamedTuple

from seqeval.metrics import classification_report

_AVERAGE = "micro avg"


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
    report = classification_report(
        [list(tags) for tags in expected],
        [list(tags) for tags in predicted],
        output_dict=True,
        zero_division=0,
    )
    scores = {
        name: EntityScores(
            float(row["precision"]),
            float(row["recall"]),
            float(row["f1-score"]),
            int(row["support"]),
        )
        for name, row in report.items()
        if name == _AVERAGE or not name.endswith(" avg")
    }
    return scores.pop(_AVERAGE), scores
