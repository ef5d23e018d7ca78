"""Pairs are framed, filled, cut and drawn as promised, and lengths never tell the label."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.framing import SpecialTokens
from bert_jax.data.pairs import (
    UNIFORMS_PER_ROW,
    Objective,
    PairOptions,
    Rows,
    build_rows,
    truncated_lengths,
)
from bert_jax.data.randomness import random_words, uniforms
from bert_jax.data.window_index import WindowIndex

PAD, UNKNOWN, CLS, SEP, MASK, FIRST_ORDINARY = range(6)
SPECIAL = SpecialTokens(pad=PAD, cls=CLS, sep=SEP)


def build(split, options, rows=2000, seed=0, windows=None, epoch=0) -> Rows:
    index = WindowIndex(split.lengths, options.capacity)
    if windows is None:
        windows = np.random.default_rng(seed).integers(0, len(index), rows)
    return build_rows(
        split,
        index,
        windows,
        np.full(len(windows), epoch),
        uniforms(seed, "pairs", 0, len(windows), UNIFORMS_PER_ROW),
        random_words(seed, "cuts", 0, len(windows), options.coins_per_row),
        options,
        SPECIAL,
    )


def segments(rows: Rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """A and B of every row, taken apart at the separators."""
    parts = []
    for ids, length in zip(rows.token_ids_BL, rows.lengths_B, strict=True):
        first, second = np.flatnonzero(ids[:length] == SEP)
        parts.append((ids[1:first], ids[first + 1 : second]))
    return parts


def owners(split) -> tuple[np.ndarray, np.ndarray]:
    """The chunk and the document of every token id."""
    chunks = np.repeat(np.arange(len(split)), split.lengths)
    blank = np.full(FIRST_ORDINARY, -1)
    return np.concatenate([blank, chunks]), np.concatenate([blank, split.documents[chunks]])


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 80))
def test_truncation_equals_cutting_one_token_at_a_time(first, second, target):
    a, b = first, second
    while a + b > target:
        if a > b:
            a -= 1
        else:
            b -= 1
    assert truncated_lengths(np.array([first]), np.array([second]), np.array([target])) == (a, b)


@pytest.mark.parametrize("objective", [Objective.NEXT_SENTENCE, Objective.SENTENCE_ORDER])
@pytest.mark.parametrize("max_length", [8, 32, 128])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_are_framed(make_split_once, objective, max_length, seed):
    split = make_split_once(seed, documents=12, capacity=126)
    rows = build(split, PairOptions(max_length, objective), rows=200, seed=seed)
    column = np.arange(max_length)
    real = column < rows.lengths_B[:, None]
    assert rows.token_ids_BL.dtype == np.int32
    assert (rows.token_ids_BL[:, 0] == CLS).all()
    assert (rows.token_ids_BL[~real] == PAD).all()
    assert (rows.token_ids_BL[real] != PAD).all()
    assert ((rows.token_ids_BL == SEP).sum(axis=1) == 2).all()
    assert (rows.token_ids_BL[np.arange(200), rows.lengths_B - 1] == SEP).all()
    first_separator = np.argmax(rows.token_ids_BL == SEP, axis=1)
    assert (rows.segment_ids_BL == (real & (column > first_separator[:, None]))).all()
    for first, second in segments(rows):
        assert len(first) > 0
        assert len(second) > 0
        for segment in (first, second):  # ids count up: a segment is a run of one chunk's text
            assert (np.diff(segment) == 1).all()
            assert len(set(owners(split)[0][segment])) == 1


@pytest.fixture(scope="session")
def make_split_once(make_split, random_documents):
    return lambda seed, documents, capacity: make_split(random_documents(seed, documents, capacity))


def test_next_segments_follow_and_random_ones_are_foreign(make_split, random_documents):
    split = make_split(random_documents(1, 40, 126))
    chunk_of, document_of = owners(split)
    rows = build(split, PairOptions(128), rows=4000)
    assert abs(rows.labels_B.mean() - 0.5) < 0.03
    for (first, second), label in zip(segments(rows), rows.labels_B, strict=True):
        if label == 0:
            assert chunk_of[first[0]] == chunk_of[second[0]]
            assert second[0] > first[-1]
        else:
            assert document_of[first[0]] != document_of[second[0]]


def test_partners_are_foreign_even_when_one_document_is_nearly_everything(make_split):
    split = make_split([[[10, 10, 10]] * 500, [[9, 9]]])
    rows = build(split, PairOptions(64), rows=1000)
    _, document_of = owners(split)
    randoms = [pair for pair, one in zip(segments(rows), rows.labels_B, strict=True) if one]
    assert len(randoms) > 400
    assert all(document_of[a[0]] != document_of[b[0]] for a, b in randoms)


def test_sentence_order_swaps_half_of_the_pairs(make_split, random_documents):
    split = make_split(random_documents(2, 20, 126))
    chunk_of, _ = owners(split)
    rows = build(split, PairOptions(128, Objective.SENTENCE_ORDER), rows=4000)
    assert abs(rows.labels_B.mean() - 0.5) < 0.03
    for (first, second), label in zip(segments(rows), rows.labels_B, strict=True):
        assert chunk_of[first[0]] == chunk_of[second[0]]
        assert (first[0] > second[0]) == bool(label)


def test_single_segments_fill_the_row(make_split, random_documents):
    split = make_split(random_documents(3, 20, 126))
    rows = build(split, PairOptions(128, Objective.NONE), windows=np.arange(len(split)))
    assert (rows.lengths_B == split.lengths + 2).all()
    assert (rows.segment_ids_BL == 0).all()
    text = rows.token_ids_BL[rows.token_ids_BL >= FIRST_ORDINARY]
    assert (text == split.chunks.token_ids).all()  # every token once


def test_rows_are_full_but_for_one_in_ten(make_split):
    split = make_split([[[21] * 6]] * 50)
    rows = build(split, PairOptions(128), rows=5000)
    assert abs((rows.lengths_B < 128).mean() - 0.1) < 0.015
    assert rows.lengths_B.min() < 20


def test_longer_chunks_offer_windows_that_cover_the_text(make_split, random_documents):
    split = make_split(random_documents(4, 30, 510))
    options = PairOptions(128, short_sequence_share=0.0, random_next_share=0.0)
    index = WindowIndex(split.lengths, options.capacity)
    assert len(index) == np.maximum(np.rint(split.lengths / options.capacity), 1).sum()
    rows = build(split, options, windows=np.arange(len(index)))
    seen = np.unique(rows.token_ids_BL[rows.token_ids_BL >= FIRST_ORDINARY])
    assert len(seen) > 0.85 * split.lengths.sum()


@pytest.mark.parametrize("prepared", [126, 130, 180, 189, 190, 315, 510])
def test_single_segments_cover_longer_chunks_and_fill_their_rows(make_split, prepared):
    split = make_split([[[prepared]]] * 20)
    options = PairOptions(128, Objective.NONE)
    windows = np.arange(len(WindowIndex(split.lengths, options.capacity)))
    seen = set()
    for epoch in range(8):
        rows = build(split, options, windows=windows, epoch=epoch)
        assert (rows.lengths_B == 128).all()
        new = np.unique(rows.token_ids_BL[rows.token_ids_BL >= FIRST_ORDINARY])
        assert len(new) == min(20 * prepared, 20 * 126 * round(prepared / 126))
        seen |= set(new.tolist())
    assert len(seen) == 20 * prepared  # where one window leaves out a third of the chunk too


def test_whole_sentences_are_split_between_the_segments(make_split):
    split = make_split([[[5, 7, 11]], [[6, 6, 6]]])
    rows = build(split, PairOptions(32, random_next_share=0.0, short_sequence_share=0.0))
    lengths = {(len(a), len(b)) for a, b in segments(rows)}
    assert lengths == {(5, 18), (12, 11), (6, 12), (12, 6)}


def test_cuts_fall_on_both_ends(make_split):
    split = make_split([[[40, 40]], [[40, 40]]])
    rows = build(split, PairOptions(63, random_next_share=0.0, short_sequence_share=0.0))
    for segment in (0, 1):
        fronts = [(pair[segment][0] - FIRST_ORDINARY) % 40 for pair in segments(rows)]
        # Each of the 10 tokens cut fell off the front with probability one half.
        assert abs(np.mean(fronts) - 5) < 0.2
        assert abs(np.var(fronts) - 2.5) < 0.4


PAIRS = (Objective.NEXT_SENTENCE, Objective.SENTENCE_ORDER)


@pytest.mark.parametrize("objective", PAIRS)
@pytest.mark.parametrize("shared", [1, 4])
@pytest.mark.parametrize("capacity", [126, 510])
def test_lengths_do_not_tell_the_label(make_split, random_documents, capacity, shared, objective):
    options = PairOptions(128, objective, sequences_per_row=shared)
    windows = None
    if objective is Objective.NEXT_SENTENCE:
        split = make_split(random_documents(5, 300, capacity))
    else:
        # Each text once: the lengths of whole sentences are enough to know it again, order and all.
        # And without the last sentences of documents, which end where the maker of these cut them.
        made = random_documents(5, 6000, capacity)
        split = make_split(
            [
                [chunk if sum(chunk) == capacity else chunk[:-1] for chunk in document[:1]]
                for document in made
                if len(document[0]) > 1
            ]
        )
        count = len(WindowIndex(split.lengths, options.capacity))
        windows = np.random.default_rng(0).permutation(count)
    rows = build(split, options, rows=50_000, windows=windows)
    first = np.array([len(a) for a, _ in segments(rows)])
    second = np.array([len(b) for _, b in segments(rows)])
    features = np.stack([first, second, 128 - rows.lengths_B])
    assert best_accuracy(features, rows.labels_B) < 0.52


@pytest.mark.parametrize("documents", ["of all sizes", "short"])
def test_sentence_ends_do_not_tell_the_label(make_split, random_documents, documents):
    made = random_documents(6, 300, 126)
    if documents == "short":  # each ends after a few sentences, where the document does
        made = [[chunk[:5] for chunk in document if sum(chunk[:5]) < 100] for document in made]
        made = [document for document in made if document]
    split = make_split(made)
    rows = build(split, PairOptions(128), rows=50_000)
    full = split.lengths > split.lengths.max() - 8
    ends = np.setdiff1d(split.chunks.sentence_ends, split.chunks.token_offsets[1:][full])
    starts = np.concatenate([[0], split.chunks.sentence_ends])
    pairs = [b for _, b in segments(rows)]
    ends_with_sentence = np.isin([b[-1] - FIRST_ORDINARY + 1 for b in pairs], ends)
    starts_with_sentence = np.isin([b[0] - FIRST_ORDINARY for b in pairs], starts)
    assert ends_with_sentence.any()
    assert best_accuracy(1.0 * ends_with_sentence[None], rows.labels_B) < 0.52
    assert best_accuracy(1.0 * starts_with_sentence[None], rows.labels_B) < 0.52


@pytest.mark.parametrize("capacity", [126, 510])
def test_halves_of_sentences_do_not_tell_the_order(make_split, random_documents, capacity):
    split = make_split(random_documents(7, 300, capacity))
    rows = build(split, PairOptions(128, Objective.SENTENCE_ORDER), rows=50_000)
    bounds = split.chunks.sentence_ends
    pairs = segments(rows)
    starts, ends = (
        np.array(
            [[segment[place] - FIRST_ORDINARY + place % 2 for segment in pair] for pair in pairs]
        )
        for place in (0, -1)
    )
    # Where a chunk begins or ends, its text may break off.
    offsets = split.chunks.token_offsets
    full_ends = offsets[1:][split.lengths > split.lengths.max() - 8]
    features = np.concatenate(
        [
            np.isin(starts, bounds) & ~np.isin(starts, offsets),
            np.isin(ends, bounds) & ~np.isin(ends, full_ends),
        ],
        axis=1,
    )
    assert features.all(axis=1).mean() > 0.5
    assert best_accuracy(1.0 * features.T, rows.labels_B) < 0.52


def test_sentences_of_an_order_are_whole_and_fill_the_row(make_split):
    split = make_split([[[9] * 14]] * 20)  # 126 tokens, of which the ends may be halves
    options = PairOptions(128, Objective.SENTENCE_ORDER, short_sequence_share=0.0)
    for first, second in segments(build(split, options, rows=500)):
        assert len(first) % 9 == 0 and len(second) % 9 == 0
        assert len(first) + len(second) == 12 * 9
        assert {(segment[0] - FIRST_ORDINARY) % 9 for segment in (first, second)} == {0}


def best_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Held-out accuracy of majority votes in cells of a grid over the features, coarse to fine."""
    half = len(labels) // 2
    accuracies = []
    for bins in (4, 8, 16, 32):
        edges = [np.unique(np.quantile(f, np.linspace(0, 1, bins + 1)[1:-1])) for f in features]
        cells = np.zeros(len(labels), int)
        for feature, edge in zip(features, edges, strict=True):
            cells = cells * (bins + 1) + np.searchsorted(edge, feature)
        size = cells.max() + 1
        ones = np.bincount(cells[:half], labels[:half], minlength=size)
        votes = ones * 2 > np.bincount(cells[:half], minlength=size)
        accuracies.append((votes[cells[half:]] == labels[half:]).mean())
    return max(accuracies)
