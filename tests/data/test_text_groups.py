import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.text_groups import group_texts
from bert_jax.data.text_rows import make_text_rows
from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer

TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, "a", "b", "c", "##a", "##b"], lowercase=True)
TEXT = st.text("abc ", max_size=20)


@given(st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=5), st.booleans())
def test_each_text_of_a_row_is_tokenised_by_itself(groups: list[list[str]], pairs: bool) -> None:
    flat = [text for group in groups for text in group]
    counts = [len(group) for group in groups]
    second = flat[::-1] if pairs else None
    rows = group_texts(flat, second, counts, TOKENIZER, max_length=12)
    assert rows.lengths.max() <= 12
    batch = rows.rows(np.arange(len(groups))[::-1], 12)
    assert batch["token_ids"].shape == (len(groups), max(counts), 12)
    texts = make_text_rows(flat, second, TOKENIZER, max_length=12)
    text = len(flat)
    for row, count in enumerate(reversed(counts)):
        text -= count
        expected = texts.rows(np.arange(text, text + count), 12)
        for name, array in expected.items():
            np.testing.assert_array_equal(batch[name][row, :count], array)
            assert not batch[name][row, count:].any()
        assert rows.lengths[len(groups) - 1 - row] == expected["lengths"].max()


def test_texts_that_stand_twice_are_kept_once() -> None:
    once = make_text_rows(["a b c"], ["a"], TOKENIZER, max_length=12)
    often = make_text_rows(["a b c"] * 4, ["a"] * 4, TOKENIZER, max_length=12)
    np.testing.assert_array_equal(often.tokens, once.tokens)
    assert len(often) == 4


@pytest.mark.parametrize("max_length", [8, 9])
def test_a_row_without_its_longest_texts_fits_its_own_length(max_length: int) -> None:
    rows = group_texts(["a", "a b c a b c", "b"], None, [1, 2], TOKENIZER, max_length=max_length)
    assert rows.lengths.tolist() == [3, 8]
    assert rows.rows(np.array([0]), 3)["lengths"].tolist() == [[3, 0]]
