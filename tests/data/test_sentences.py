"""Sentence splitting."""

import pytest

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


def test_other_scripts():
    assert split_sentences("这是一个句子。对吗？", language="zh") == ["这是一个句子。", "对吗？"]


def test_no_character_is_lost():
    text = "One (two. three) “four.” five… Six e.g. seven!\nEight"
    joined = "".join(split_sentences(text))
    assert "".join(joined.split()) == "".join(text.split())
