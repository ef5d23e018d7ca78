"""The sample that a vocabulary is learnt from."""

import numpy as np
import pytest

from bert_jax.data.vocabulary_sample import PieceKey, VocabularySample


def longest_prefix(pieces, max_characters):
    """The pieces with the smallest keys that fit, by the definition."""
    total, kept = 0, []
    for key, characters in sorted(pieces):
        total += characters
        if kept and total > max_characters:
            break
        kept.append(key)
    return kept


@pytest.mark.parametrize("max_characters", [1, 50, 300, 5000])
def test_it_is_the_same_in_any_order_and_from_any_parts(max_characters):
    generator = np.random.default_rng(max_characters)
    pieces = [
        (PieceKey(int(generator.integers(30)), part, number), int(generator.integers(1, 60)))
        for part in range(4)
        for number in range(10)
    ]
    expected = longest_prefix(pieces, max_characters)
    merged = VocabularySample(max_characters)
    for part in generator.permutation(4):
        sample = VocabularySample(max_characters)
        for i in generator.permutation(len(pieces)):
            if pieces[i][0].part == part:
                sample.add(*pieces[i])
        if sample.bound is not None:
            merged.exclude(sample.bound)
        for key, characters, _ in sample.pieces():
            merged.add(key, characters)
    whole = VocabularySample(max_characters)
    for key, characters in pieces:
        whole.add(key, characters)
    in_order = sorted(expected, key=lambda key: (key.part, key.number))
    for sample in (whole, merged):
        assert [key for key, _, _ in sample.pieces()] == in_order
        left_out = {key for key, _ in pieces} - set(expected)
        assert sample.bound == (min(left_out) if left_out else None)


def test_its_lines_are_in_the_order_of_the_input():
    sample = VocabularySample(100)
    for number, text in enumerate(["b\nc", "a", "d"]):
        sample.add(PieceKey(7 * number % 3, 0, number), len(text), text)
    assert sample.lines() == ["b", "c", "a", "d"]
