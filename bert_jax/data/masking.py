"""Masked-language-model inputs: which tokens to predict, and what to show in their place.

A share of the maskable tokens is chosen (15% in BERT). Of the chosen, 80% are shown as ``[MASK]``,
10% as a random token and 10% unchanged (Devlin et al., "BERT", 2019, section 3.1). The unit of
choice is a token, a whole word (google-research/bert's "whole word masking"), or a span of whole
words (Joshi et al., "SpanBERT", 2020, section 3.1).

The number of tokens to choose in a row is the share times its maskable tokens, rounded up or down
at random so that the expected share is exact; but at least one, so that it is more where rows have
fewer than seven.

Shapes: B rows, L sequence length, M most masked positions of a row, S most words of a span.
"""

import dataclasses
import enum
import math
from typing import NamedTuple

import numpy as np

from bert_jax.data.randomness import below
from bert_jax.errors import UserError


class Unit(enum.StrEnum):
    """What is masked together."""

    TOKEN = "token"
    WORD = "word"
    SPAN = "span"


@dataclasses.dataclass(frozen=True)
class MaskingOptions:
    """How tokens are masked.

    Attributes:
      max_length: L.
      unit: what is masked together.
      share: share of the maskable tokens that are predicted.
      mask_share: share of the predicted tokens shown as ``[MASK]``.
      random_share: share of the predicted tokens shown as a random token.
      span_probability: parameter of the geometric distribution of span lengths, in words.
      max_span_words: S, where that distribution is cut off.

    Raises:
      UserError: a value is out of range.
    """

    max_length: int
    unit: Unit = Unit.TOKEN
    share: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    span_probability: float = 0.2
    max_span_words: int = 10

    def __post_init__(self) -> None:
        shares = {
            "share": self.share,
            "mask_share": self.mask_share,
            "random_share": self.random_share,
            "mask_share + random_share": self.mask_share + self.random_share,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise UserError(f"data.masking.{name} is {value}; give a share from 0 to 1")
        if not 0 < self.span_probability <= 1 or self.max_span_words < 1:
            raise UserError(
                "data.masking.span_probability must be above 0 and at most 1, max_span_words at "
                f"least 1; they are {self.span_probability} and {self.max_span_words}"
            )

    @property
    def max_masked(self) -> int:
        """M: ``[CLS]`` and at least one ``[SEP]`` are never masked."""
        return max(1, math.ceil(self.share * (self.max_length - 2)))

    @property
    def uniforms_per_row(self) -> int:
        """Uniforms that a row uses: its rounding, then two for every masked position."""
        return 1 + 2 * self.max_masked

    @property
    def words_per_row(self) -> int:
        """Random 64-bit words that a row uses to order its tokens or words."""
        return self.max_length


class TokenTable(NamedTuple):
    """What masking needs to know of a vocabulary.

    Attributes:
      mask_id: the id of ``[MASK]``.
      is_special: bool [V], tokens that are never masked, nor put in as random tokens.
      is_continuation: bool [V], pieces that go on with the word before them (``##ing``).
      ordinary_ids: int32, the ids that random tokens are drawn from.
    """

    mask_id: int
    is_special: np.ndarray
    is_continuation: np.ndarray
    ordinary_ids: np.ndarray


class MaskedRows(NamedTuple):
    """Masked inputs and what to predict; unused places have weight 0, position 0 and label 0.

    Attributes:
      token_ids_BL: int32, as shown to the model.
      positions_BM: int32, ascending.
      labels_BM: int32, the ids before masking.
      weights_BM: float32, 1 for a position to predict.
    """

    token_ids_BL: np.ndarray
    positions_BM: np.ndarray
    labels_BM: np.ndarray
    weights_BM: np.ndarray


def mask_rows(
    token_ids_BL: np.ndarray,
    lengths_B: np.ndarray,
    uniforms: np.ndarray,
    words: np.ndarray,
    options: MaskingOptions,
    table: TokenTable,
) -> MaskedRows:
    """Masks a batch.

    Args:
      token_ids_BL: int32, real tokens first.
      lengths_B: int, the number of real tokens.
      uniforms: float64 [B, options.uniforms_per_row] in [0, 1).
      words: uint64 [B, options.words_per_row], random.
      options: how to mask.
      table: the vocabulary's special and continuation tokens.
    """
    column = np.arange(options.max_length)
    maskable_BL = (column < lengths_B[:, None]) & ~table.is_special[token_ids_BL]
    available_B = np.count_nonzero(maskable_BL, axis=1)
    wanted_B = np.floor(options.share * available_B + uniforms[:, 0]).astype(np.int64)
    wanted_B = np.clip(wanted_B, np.minimum(available_B, 1), options.max_masked)

    if options.unit is Unit.TOKEN:
        positions_BM = _choose_tokens(maskable_BL, words, options)
    else:
        word_BL = _word_numbers(token_ids_BL, maskable_BL, table)
        choose = _choose_words if options.unit is Unit.WORD else _choose_spans
        chosen_BL = choose(word_BL, maskable_BL, wanted_B, words, options)
        wanted_B = np.count_nonzero(chosen_BL, axis=1)
        # Chosen columns first, in order.
        positions_BM = np.argsort(~chosen_BL, axis=1, kind="stable")[:, : options.max_masked]

    used_BM = np.arange(options.max_masked) < wanted_B[:, None]
    # Unused places sort last, then become position 0.
    positions_BM = np.sort(np.where(used_BM, positions_BM, options.max_length), axis=1)
    positions_BM = np.where(used_BM, positions_BM, 0)
    labels_BM = np.where(used_BM, np.take_along_axis(token_ids_BL, positions_BM, axis=1), 0)

    kind_BM, which_BM = np.split(uniforms[:, 1:], 2, axis=1)
    shown_BM = np.where(
        kind_BM < options.mask_share,
        table.mask_id,
        np.where(
            kind_BM < options.mask_share + options.random_share,
            table.ordinary_ids[below(which_BM, len(table.ordinary_ids))],
            labels_BM,
        ),
    )
    shown_BL = token_ids_BL.copy()
    rows, places = np.nonzero(used_BM)
    shown_BL[rows, positions_BM[rows, places]] = shown_BM[rows, places]
    return MaskedRows(
        token_ids_BL=shown_BL,
        positions_BM=positions_BM.astype(np.int32),
        labels_BM=labels_BM.astype(np.int32),
        weights_BM=used_BM.astype(np.float32),
    )


def _random_keys(words: np.ndarray) -> np.ndarray:
    """Sort keys whose low bits number the columns, so that a plain sort is an argsort: int64."""
    columns = words.shape[1]
    low_bits = int(columns - 1).bit_length()
    high = (words >> np.uint64(low_bits + 1)).astype(np.int64) << low_bits
    return high | np.arange(columns)


def _choose_tokens(
    maskable_BL: np.ndarray, words: np.ndarray, options: MaskingOptions
) -> np.ndarray:
    """Maskable columns in random order, the first M of them: int64 [B, M]."""
    columns = maskable_BL.shape[1]
    keys_BL = np.where(maskable_BL, _random_keys(words), np.iinfo(np.int64).max)
    # Sorting integers that carry their column is several times faster than argsort.
    keys_BL.partition(options.max_masked, axis=1)
    first_BM = np.sort(keys_BL[:, : options.max_masked], axis=1)
    return first_BM & ((1 << int(columns - 1).bit_length()) - 1)


def _word_numbers(
    token_ids_BL: np.ndarray, maskable_BL: np.ndarray, table: TokenTable
) -> np.ndarray:
    """The column where each column's word starts, or its own if not maskable: int64 [B, L]."""
    column = np.arange(token_ids_BL.shape[1])
    after_maskable_BL = np.zeros_like(maskable_BL)
    after_maskable_BL[:, 1:] = maskable_BL[:, :-1]
    goes_on_BL = maskable_BL & after_maskable_BL & table.is_continuation[token_ids_BL]
    return np.maximum.accumulate(np.where(goes_on_BL, 0, column), axis=1)


def _choose_words(
    word_BL: np.ndarray,
    maskable_BL: np.ndarray,
    wanted_B: np.ndarray,
    words: np.ndarray,
    options: MaskingOptions,
) -> np.ndarray:
    """Whole words in random order, each one that still fits: bool [B, L]."""
    batch, columns = word_BL.shape
    rows = np.arange(batch)
    is_start_BL = maskable_BL & (word_BL == np.arange(columns))
    sizes_BL = np.zeros((batch, columns), np.int64)
    np.add.at(sizes_BL, (rows[:, None], word_BL), maskable_BL)
    order_BL = np.argsort(
        np.where(is_start_BL, _random_keys(words), np.iinfo(np.int64).max), axis=1
    )
    chosen_BL = np.zeros((batch, columns), bool)  # marks the first column of a chosen word
    left_B = wanted_B.copy()
    for turn in range(int(is_start_BL.sum(axis=1).max())):
        start_B = order_BL[:, turn]
        size_B = sizes_BL[rows, start_B]
        fits_B = is_start_BL[rows, start_B] & (size_B <= left_B)
        chosen_BL[rows, start_B] |= fits_B
        left_B -= np.where(fits_B, size_B, 0)
        if not left_B.any():
            break
    return np.take_along_axis(chosen_BL, word_BL, axis=1) & maskable_BL


def _choose_spans(
    word_BL: np.ndarray,
    maskable_BL: np.ndarray,
    wanted_B: np.ndarray,
    words: np.ndarray,
    options: MaskingOptions,
) -> np.ndarray:
    """Spans of whole words, drawn until enough tokens are chosen; the last is cut to fit.

    A span is anchored at a random maskable token that is not yet chosen and begins with that
    token's word; it ends early at a special token.
    """
    batch, columns = word_BL.shape
    column = np.arange(columns)
    rows = np.arange(batch)
    starts_BL = maskable_BL & (word_BL == column)
    # Ordinal of each column's word, so that a span of n words is a range of ordinals.
    ordinal_BL = np.cumsum(starts_BL, axis=1)
    # Runs of maskable tokens between special tokens; a span stays within one.
    run_BL = np.cumsum(~maskable_BL, axis=1)
    lengths = np.arange(1, options.max_span_words + 1)
    probabilities = options.span_probability * (1 - options.span_probability) ** (lengths - 1)
    cumulative = np.cumsum(probabilities / probabilities.sum())
    keys_BL = np.where(maskable_BL, _random_keys(words), np.iinfo(np.int64).max)
    anchors_BL = np.argsort(keys_BL, axis=1)
    # The bits of a word that decide the order are its high ones; its low ones give the length.
    length_uniforms_BL = (words & np.uint64(0xFFFF)).astype(np.float64) / 2**16
    span_words_BL = 1 + np.searchsorted(cumulative, length_uniforms_BL, side="right")

    chosen_BL = np.zeros((batch, columns), bool)
    left_B = wanted_B.copy()
    for turn in range(int(maskable_BL.sum(axis=1).max())):
        anchor_B = anchors_BL[:, turn]
        useful_B = maskable_BL[rows, anchor_B] & ~chosen_BL[rows, anchor_B] & (left_B > 0)
        first_B = ordinal_BL[rows, anchor_B]
        last_B = first_B + span_words_BL[rows, anchor_B]
        in_span_BL = (
            useful_B[:, None]
            & maskable_BL
            & ~chosen_BL
            & (ordinal_BL >= first_B[:, None])
            & (ordinal_BL < last_B[:, None])
            & (run_BL == run_BL[rows, anchor_B][:, None])
        )
        in_span_BL &= np.cumsum(in_span_BL, axis=1) <= left_B[:, None]
        chosen_BL |= in_span_BL
        left_B -= np.count_nonzero(in_span_BL, axis=1)
        if not left_B.any():
            break
    return chosen_BL
