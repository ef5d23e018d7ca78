"""Sentence splitting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.sentences import split_sentences


def test_splits_prose():
    text = "Dr. Smith paid 3.14 dollars. Why? Nobody knows!"
    assert split_sentences(text) == ["Dr. Smith paid 3.14 dollars.", "Why?", "Nobody knows!"]


def test_a_line_break_ends_a_sentence_unless_lines_are_wrapped():
    text = "a title\nand more\n\nanother title"
    assert split_sentences(text) == ["a title", "and more", "another title"]
    assert split_sentences(text, wrapped_lines=True) == ["a title and more", "another title"]


def test_windows_line_ends():
    text = "one line\r\n\r\ntwo lines\r\nmake this"
    sentences = split_sentences(text, wrapped_lines=True)
    assert [sentence.split() for sentence in sentences] == [
        ["one", "line"],
        ["two", "lines", "make", "this"],
    ]


@pytest.mark.parametrize("text", ["", " \n\n \t\n"])
def test_blank_text_has_no_sentences(text):
    assert split_sentences(text) == []


WIDE_SPACES = "\u00a0\u202f\u2009\u3000\u2028\u0085"


@pytest.mark.parametrize("space", WIDE_SPACES)
@pytest.mark.parametrize("language", ["en", "fr", "de"])
def test_a_letter_and_a_wide_space_before_a_stop(space, language):
    text = f"Carrots hold vitamin A{space}. They are good. So are peas."
    sentences = split_sentences(text, language=language)
    assert " ".join(sentences) == "Carrots hold vitamin A . They are good. So are peas."
    assert sentences[-1] == "So are peas."


@given(
    pieces=st.lists(
        st.sampled_from(["A", "z.B", "Dr", "word", "é", "3", "(", "»", "東京", ".", "?"])
        | st.sampled_from([*WIDE_SPACES, " ", "\n"])
    ),
    language=st.sampled_from(["en", "fr", "de", "ru", "ja"]),
)
def test_any_order_of_letters_stops_and_spaces(pieces, language):
    text = "".join(pieces)
    joined = "".join(split_sentences(text, language=language))
    assert "".join(joined.split()) == "".join(text.split())


def test_other_scripts():
    assert split_sentences("这是一个句子。对吗？", language="zh") == ["这是一个句子。", "对吗？"]


def test_no_character_is_lost():
    text = "One (two. three) “four.” five… Six e.g. seven!\nEight"
    joined = "".join(split_sentences(text))
    assert "".join(joined.split()) == "".join(text.split())
