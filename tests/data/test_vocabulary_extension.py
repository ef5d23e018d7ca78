"""Words of a domain are added by what they save; nothing else of the vocabulary changes."""

from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.data.vocabulary_extension import extend_vocabulary

LETTERS = "abcdefg"
OLD = WordPieceTokenizer(
    [
        *SPECIAL_TOKENS,
        *LETTERS,
        *(f"##{letter}" for letter in LETTERS),
        "ab",
        "##cd",
        ",",
        "1",
        "##1",
    ],
    lowercase=True,
)
texts = st.lists(st.text(st.sampled_from("abcdeABé1, \n"), max_size=40), max_size=30)


def test_words_are_added_by_the_tokens_that_they_save():
    # abcd is two pieces, efg three, ab one; 11 has no letter, gf is too rare.
    lines = ["Abcd, abcd abcd,", "abcd ab 11 11 11 11 11 ab abcd abcd abcd"] + 5 * ["efg ab"]
    extended = extend_vocabulary(OLD, [*lines, "gf gf gf gf"], 10)
    assert extended.vocabulary == (*OLD.vocabulary, "efg", "abcd")  # 5 * 2 and 7 * 1 saved
    assert extend_vocabulary(OLD, lines, 1).vocabulary == (*OLD.vocabulary, "efg")
    # Of an unknown word each character counts.
    too_long = "ж" * 101  # WordPiece reads none of more than 100
    unknown = extend_vocabulary(OLD, [*lines, *5 * [f"ДЖ Ж {too_long}"]], 10)
    assert unknown.vocabulary == (*OLD.vocabulary, "efg", "дж", "abcd", "ж")
    assert extend_vocabulary(OLD, lines[::-1], 10).hash == extended.hash
    assert extended.encode_batch(["abcd, efg"]) == [[OLD.size + 1, OLD.id_of(","), OLD.size]]


@given(texts, st.integers(1, 5))
def test_nothing_changes_but_the_new_words_and_those_that_begin_with_one(lines, most):
    extended = extend_vocabulary(OLD, lines, most)
    new = extended.vocabulary[OLD.size :]
    assert extended.vocabulary[: OLD.size] == OLD.vocabulary
    assert len(new) <= most
    assert extended.lowercase
    for word in new:
        assert len(OLD.encode_batch([word])[0]) > 1 or OLD.id_of(word) == OLD.unknown_id
        assert extended.encode_batch([word]) == [[extended.id_of(word)]]
    words = [word for line in lines for word in OLD.words(line) if not word.startswith(new)]
    assert extended.encode_batch(words) == OLD.encode_batch(words)
