"""Rows of fixed length."""

import numpy as np

from bert_jax.data.framing import SpecialTokens, frame_pairs, frame_singles

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3)
TOKENS = np.arange(10, 20, dtype=np.int32)


def test_pairs():
    framed = frame_pairs(
        TOKENS, np.array([0, 9]), np.array([2, 0]), np.array([7, 9]), np.array([3, 1]), 8, SPECIAL
    )
    np.testing.assert_array_equal(
        framed.token_ids_BL, [[2, 10, 11, 3, 17, 18, 19, 3], [2, 3, 19, 3, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        framed.segment_ids_BL, [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(framed.lengths_B, [8, 4])
    assert {array.dtype for array in framed} == {np.dtype(np.int32)}


def test_singles():
    framed = frame_singles(TOKENS, np.array([8, 3]), np.array([2, 0]), 5, SPECIAL)
    np.testing.assert_array_equal(framed.token_ids_BL, [[2, 18, 19, 3, 0], [2, 3, 0, 0, 0]])
    np.testing.assert_array_equal(framed.segment_ids_BL, np.zeros((2, 5)))
    np.testing.assert_array_equal(framed.lengths_B, [4, 2])
    assert {array.dtype for array in framed} == {np.dtype(np.int32)}


def test_nothing_to_frame():
    none = np.zeros(1, np.int64)
    nothing = np.zeros(0, np.int32)
    pair = frame_pairs(nothing, none, none, none, none, 4, SPECIAL)
    np.testing.assert_array_equal(pair.token_ids_BL, [[2, 3, 3, 0]])
    single = frame_singles(nothing, none, none, 4, SPECIAL)
    np.testing.assert_array_equal(single.token_ids_BL, [[2, 3, 0, 0]])
