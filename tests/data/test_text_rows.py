"""Rows of texts are what BERT's tokenizer makes of them."""

import numpy as np
import pytest

from bert_jax.data.text_rows import make_text_rows
from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.errors import UserError

WORDS = [f"w{number}" for number in range(40)]
TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, *WORDS], lowercase=True)
FIRST = ["w1 w2 w3", "", " ".join(WORDS), "w5"]
SECOND = ["w4", "w5 w6", " ".join(WORDS[::-1]), "  "]


def shown(rows, number, length):
    batch = rows.rows(np.array([number]), length)
    ids = batch["token_ids"][0, : batch["lengths"][0]]
    return " ".join(TOKENIZER.vocabulary[i] for i in ids), batch


@pytest.mark.parametrize("second", [None, SECOND])
def test_rows_equal_transformers(second, tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(TOKENIZER.vocabulary))
    reference = transformers.BertTokenizerFast(
        vocab=str(vocabulary), vocab_file=str(vocabulary), do_lower_case=True
    )(FIRST, second, truncation="longest_first", max_length=17, padding="max_length")
    rows = make_text_rows(FIRST, second, TOKENIZER, max_length=17)
    batch = rows.rows(np.arange(4), 17)
    np.testing.assert_array_equal(batch["token_ids"], reference["input_ids"])
    np.testing.assert_array_equal(batch["segment_ids"], reference["token_type_ids"])
    np.testing.assert_array_equal(batch["lengths"], np.sum(reference["attention_mask"], axis=1))
    np.testing.assert_array_equal(rows.lengths, batch["lengths"])


def test_a_row_is_the_same_at_any_length():
    rows = make_text_rows(FIRST, SECOND, TOKENIZER, max_length=16)
    short, _ = shown(rows, 0, 8)
    long, batch = shown(rows, 0, 16)
    assert short == long == "[CLS] w1 w2 w3 [SEP] w4 [SEP]"
    assert batch["segment_ids"][0].tolist() == [0] * 5 + [1] * 2 + [0] * 9


def test_texts_without_tokens():
    rows = make_text_rows(["", " "], None, TOKENIZER, max_length=8)
    assert shown(rows, 1, 8)[0] == "[CLS] [SEP]"
    with pytest.raises(UserError, match="leaves no room"):
        make_text_rows(["w1"], ["w1"], TOKENIZER, max_length=4)
