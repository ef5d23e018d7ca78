"""Scores of entities."""

import pytest

from bert_jax.tasks.tag_scores import EntityScores, score_entities


def test_counted_by_hand():
    expected = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "B-LOC"]]
    # Right: the second LOC of the second sentence, and PER. Wrong: an end too far, a type.
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["B-LOC", "I-LOC", "B-LOC"]]
    overall, by_type = score_entities(expected, predicted)
    assert overall == EntityScores(2 / 4, 2 / 4, 0.5, 4)
    assert by_type == {
        "LOC": EntityScores(1 / 2, 1 / 3, pytest.approx(0.4), 3),
        "ORG": EntityScores(0.0, 0.0, 0.0, 0),
        "PER": EntityScores(1.0, 1.0, 1.0, 1),
    }


def test_tags_are_read_as_conlleval_reads_them():
    iob1 = [["I-PER", "I-PER", "B-PER", "O"], ["I-LOC", "I-PER", "O", "O"]]
    iob2 = [["B-PER", "I-PER", "B-PER", "O"], ["B-LOC", "B-PER", "O", "O"]]
    iobes = [["B-PER", "E-PER", "S-PER", "O"], ["S-LOC", "S-PER", "O", "O"]]
    for tags in (iob1, iob2, iobes):
        assert score_entities(iob2, tags)[0] == EntityScores(1.0, 1.0, 1.0, 4)


@pytest.mark.parametrize(
    ("expected", "predicted", "support"),
    [("O", "O", 0), ("O", "B-X", 0), ("B-X", "O", 1)],
)
def test_nothing_to_divide_by(expected, predicted, support):
    overall, by_type = score_entities([[expected]], [[predicted]])
    assert overall == EntityScores(0.0, 0.0, 0.0, support)
    assert set(by_type) == {tag[2:] for tag in (expected, predicted)} - {""}
