"""Masks have the promised shares, never touch special tokens, and keep words and spans together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.masking import MaskedRows, MaskingOptions, TokenTable, Unit, mask_rows
from bert_jax.data.randomness import random_words, uniforms

PAD, UNKNOWN, CLS, SEP, MASK, FIRST_ORDINARY = range(6)
VOCABULARY = 300
FIRST_CONTINUATION = 250  # ids from here on are "##" pieces

TABLE = TokenTable(
    mask_id=MASK,
    is_special=np.arange(VOCABULARY) < FIRST_ORDINARY,
    is_continuation=np.arange(VOCABULARY) >= FIRST_CONTINUATION,
    ordinary_ids=np.arange(FIRST_ORDINARY, VOCABULARY, dtype=np.int32),
)


def make_rows(seed: int, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """``[CLS] A [SEP] B [SEP]`` of random lengths, with an [UNK] here and there."""
    random = np.random.default_rng(seed)
    ids = random.integers(FIRST_ORDINARY, VOCABULARY, (batch, length), dtype=np.int32)
    ids[random.random(ids.shape) < 0.02] = UNKNOWN
    lengths = random.integers(min(5, length), length + 1, batch)
    ids[:, 0] = CLS
    ids[np.arange(batch), lengths // 2] = SEP
    ids[np.arange(batch), lengths - 1] = SEP
    ids[np.arange(length) >= lengths[:, None]] = PAD
    return ids, lengths


def mask(ids: np.ndarray, lengths: np.ndarray, options: MaskingOptions, seed: int) -> MaskedRows:
    return mask_rows(
        ids,
        lengths,
        uniforms(seed, "masks", 0, len(ids), options.uniforms_per_row),
        random_words(seed, "order", 0, len(ids), options.words_per_row),
        options,
        TABLE,
    )


@pytest.mark.parametrize("unit", list(Unit))
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(8, 150))
def test_labels_restore_the_input_and_specials_stay(unit, seed, length):
    ids, lengths = make_rows(seed, 20, length)
    masked = mask(ids, lengths, MaskingOptions(length, unit), seed)
    used = masked.weights_BM > 0
    assert (masked.positions_BM[~used] == 0).all()
    assert (masked.labels_BM[~used] == 0).all()
    restored = masked.token_ids_BL.copy()
    rows = np.nonzero(used)[0]
    restored[rows, masked.positions_BM[used]] = masked.labels_BM[used]
    assert (restored == ids).all()
    assert not TABLE.is_special[masked.labels_BM[used]].any()
    # Ascending without repeats, so no position is counted twice.
    steps = np.diff(masked.positions_BM, axis=1)[used[:, 1:]]
    assert (steps > 0).all()
    # Something to predict wherever there is something to mask.
    maskable = ~TABLE.is_special[ids]
    if unit is not Unit.WORD:
        assert (used.any(axis=1) == maskable.any(axis=1)).all()


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("length", [128, 512])
def test_shares(unit, length):
    batches = [make_rows(seed, 2000, length) for seed in range(3)]
    masked = [
        mask(ids, lengths, MaskingOptions(length, unit), seed)
        for seed, (ids, lengths) in enumerate(batches)
    ]
    maskable = sum(np.count_nonzero(~TABLE.is_special[ids]) for ids, _ in batches)
    used = np.concatenate([m.weights_BM.ravel() > 0 for m in masked])
    assert abs(used.sum() / maskable - 0.15) < 0.002

    labels = np.concatenate([m.labels_BM.ravel() for m in masked])[used]
    shown = np.concatenate(
        [np.take_along_axis(m.token_ids_BL, m.positions_BM, axis=1).ravel() for m in masked]
    )[used]
    assert abs((shown == MASK).mean() - 0.8) < 0.005
    # One random token in 295 happens to be the right one.
    chance = 1 / len(TABLE.ordinary_ids)
    assert abs((shown == labels).mean() - 0.1 * (1 + chance)) < 0.005
    assert abs(((shown != MASK) & (shown != labels)).mean() - 0.1 * (1 - chance)) < 0.005


def test_random_replacements_are_uniform_over_ordinary_ids():
    counts = np.zeros(VOCABULARY, int)
    options = MaskingOptions(128, mask_share=0.0, random_share=1.0)
    for seed in range(20):
        ids, lengths = make_rows(seed, 1000, 128)
        masked = mask(ids, lengths, options, seed)
        used = masked.weights_BM > 0
        shown = np.take_along_axis(masked.token_ids_BL, masked.positions_BM, axis=1)[used]
        counts += np.bincount(shown, minlength=VOCABULARY)
    assert counts[:FIRST_ORDINARY].sum() == 0
    ordinary = counts[FIRST_ORDINARY:]
    expected = ordinary.sum() / len(ordinary)
    chi_square = ((ordinary - expected) ** 2 / expected).sum()
    degrees = len(ordinary) - 1
    # Five standard deviations of the statistic.
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


def test_every_maskable_place_is_as_likely():
    ids = np.full((20_000, 34), 7, np.int32)
    ids[:, [0, 33]] = CLS, SEP
    masked = mask(ids, np.full(20_000, 34), MaskingOptions(34), seed=0)
    positions = masked.positions_BM[masked.weights_BM > 0]
    counts = np.bincount(positions, minlength=34)[1:33]
    expected = counts.sum() / 32
    assert ((counts - expected) ** 2 / expected).sum() < 31 + 5 * np.sqrt(2 * 31)


def test_words_are_masked_whole():
    ids, lengths = make_rows(0, 500, 128)
    masked = mask(ids, lengths, MaskingOptions(128, Unit.WORD), seed=0)
    chosen = chosen_columns(masked, ids.shape)
    # A continuation piece shares the fate of the ordinary token before it.
    joined = TABLE.is_continuation[ids[:, 1:]] & ~TABLE.is_special[ids[:, :-1]]
    joined &= ~TABLE.is_special[ids[:, 1:]]
    assert joined.any()
    assert (chosen[:, 1:][joined] == chosen[:, :-1][joined]).all()


def test_spans_are_longer_than_words_and_stay_between_special_tokens():
    ids = np.full((2000, 128), 7, np.int32)  # one-token words
    ids[:, 0], ids[:, 60], ids[:, 127] = CLS, SEP, SEP
    masked = mask(ids, np.full(2000, 128), MaskingOptions(128, Unit.SPAN), seed=0)
    chosen = chosen_columns(masked, ids.shape)
    starts = chosen & ~np.roll(chosen, 1, axis=1)
    mean_run = chosen.sum() / starts.sum()
    # Spans of the cut-off geometric distribution have 3.8 words on average (SpanBERT, section 3.1);
    # the last span of a row is cut, and neighbours may join.
    assert 3.0 < mean_run < 4.6
    assert not chosen[:, [0, 60, 127]].any()


def chosen_columns(masked: MaskedRows, shape: tuple[int, ...]) -> np.ndarray:
    chosen = np.zeros(shape, bool)
    rows, places = np.nonzero(masked.weights_BM)
    chosen[rows, masked.positions_BM[rows, places]] = True
    return chosen
