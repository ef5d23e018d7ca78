"""Numbering and cutting documents."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.documents import (
    MAX_PIECE_CHARACTERS,
    Passage,
    Tally,
    batch_pieces,
    cut_text,
    number_pieces,
    whole_document,
)


@dataclass
class Texts:
    """A source of documents in memory."""

    texts: list[str]
    name: str = "texts"
    disk_bytes: int | None = None

    def passages(self, tally):
        for text in self.texts:
            yield from whole_document(text)


@given(st.integers(0, 3), st.sampled_from(["word ", "word\n", "a b\n\n", "wörter", " \n"]))
def test_cutting_loses_nothing_but_blanks(pieces, part):
    text = part * (pieces * MAX_PIECE_CHARACTERS // len(part))
    cut = list(cut_text(text))
    assert all(len(piece) <= MAX_PIECE_CHARACTERS and piece.strip() for piece in cut)
    assert "".join(cut).strip() == text.strip()
    if " " in part or "\n" in part:
        assert all(piece[-1].isspace() for piece in cut[:-1])


def test_text_without_white_space_is_cut_anyway():
    text = "x" * (2 * MAX_PIECE_CHARACTERS + 1)
    assert [len(piece) for piece in cut_text(text)] == [MAX_PIECE_CHARACTERS] * 2 + [1]


def test_pieces_of_a_document_share_its_number_and_hash():
    large = ("a line\n" * MAX_PIECE_CHARACTERS)[: 2 * MAX_PIECE_CHARACTERS]
    tally = Tally(documents=5)
    pieces = list(number_pieces(Texts(["first", large, " \n", "first"]), tally))
    assert [(piece.document, piece.part) for piece in pieces[:3]] == [(5, 0), (6, 0), (6, 1)]
    assert pieces[-1].document == 7
    assert tally.documents == 8
    assert tally.text_bytes == len("first") * 2 + len(large)
    assert len({piece.document_hash for piece in pieces[1:-1]}) == 1
    assert pieces[0].document_hash == pieces[-1].document_hash != pieces[1].document_hash


def test_batches_hold_everything_in_order():
    texts = [str(i) * 1000 for i in range(2000)]
    pieces = list(number_pieces(Texts(texts), Tally()))
    batches = list(batch_pieces(pieces))
    assert [piece for batch in batches for piece in batch] == pieces
    assert len(batches) > 2
    longest = max(sum(len(piece.text) for piece in batch) for batch in batches)
    assert longest <= 1.5 * MAX_PIECE_CHARACTERS


def test_blank_documents_do_not_count():
    assert list(whole_document(" \n")) == []
    assert list(whole_document("x")) == [Passage("x", True)]
