"""Filling chunks, and the packed form of a record."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.chunks import (
    ChunkBatch,
    Records,
    concatenate,
    fill_chunks,
    pack_records,
    record_dtype,
    unpack_records,
)

# Ids from 50 on continue a word.
IS_CONTINUATION = np.arange(100) >= 50


@st.composite
def documents(draw):
    """(token ids, sentence ends) of a document whose sentences begin with whole words."""
    sentences = draw(
        st.lists(
            st.tuples(st.integers(0, 49), st.lists(st.integers(0, 99), max_size=30)).map(
                lambda parts: [parts[0], *parts[1]]
            ),
            max_size=8,
        )
    )
    ends = np.cumsum([len(sentence) for sentence in sentences], dtype=np.int64)
    return np.array([i for sentence in sentences for i in sentence], np.int64), ends


@given(documents(), st.integers(2, 20))
def test_chunks_are_full_and_lose_nothing(document, capacity):
    token_ids, sentence_ends = document
    chunks = fill_chunks(token_ids, sentence_ends, IS_CONTINUATION, capacity)
    kept = len(chunks.token_ids)
    assert len(token_ids) - kept <= 1, "only a last single token may be dropped"
    np.testing.assert_array_equal(chunks.token_ids, token_ids[:kept])
    lengths = np.diff(chunks.token_offsets)
    assert (lengths >= 2).all()
    assert (lengths <= capacity).all()
    for start, end in zip(chunks.token_offsets[:-1], chunks.token_offsets[1:], strict=True):
        if end == len(token_ids):
            continue
        word_start = end
        while IS_CONTINUATION[token_ids[word_start]]:
            word_start -= 1
        if (
            word_start > start + 1
        ):  # the word fits: it is not cut, and nothing more would have fitted
            assert word_start == end
            following = end + 1
            while following < len(token_ids) and IS_CONTINUATION[token_ids[following]]:
                following += 1
            assert following - start > capacity
        else:
            assert end - start == capacity


@given(documents(), st.integers(2, 20))
def test_sentence_ends_are_those_of_the_document_and_of_the_chunks(document, capacity):
    token_ids, sentence_ends = document
    chunks = fill_chunks(token_ids, sentence_ends, IS_CONTINUATION, capacity)
    kept = len(chunks.token_ids)
    expected = sorted({int(e) for e in sentence_ends if e < kept} | {*chunks.token_offsets[1:]})
    assert chunks.sentence_ends.tolist() == expected
    for c in range(len(chunks.token_offsets) - 1):
        first, last = chunks.sentence_offsets[c], chunks.sentence_offsets[c + 1]
        ends = chunks.sentence_ends[first:last]
        assert ends[-1] == chunks.token_offsets[c + 1]
        assert ends[0] > chunks.token_offsets[c]


def test_the_rest_of_a_sentence_opens_the_next_chunk():
    chunks = fill_chunks(np.arange(7), np.array([3, 7]), IS_CONTINUATION, 5)
    assert chunks.token_offsets.tolist() == [0, 5, 7]
    assert chunks.sentence_ends.tolist() == [3, 5, 7]
    assert chunks.sentence_offsets.tolist() == [0, 2, 3]


@pytest.mark.parametrize("vocabulary_size", [100, 70_000])
@given(st.lists(st.tuples(documents(), st.integers(0, 2**32 - 1)), max_size=4))
def test_packing_is_undone_by_unpacking(vocabulary_size, numbered):
    batches = [fill_chunks(*document, IS_CONTINUATION, 7) for document, _ in numbered]
    counts = [len(batch.token_offsets) - 1 for batch in batches]
    numbers = np.repeat(np.array([number for _, number in numbered], np.int64), counts)
    chunks = concatenate(batches)
    dtype = record_dtype(vocabulary_size)
    records = pack_records(chunks, numbers, dtype)
    assert records.elements.dtype == dtype
    unpacked, documents_again = unpack_records(records)
    for name, expected, actual in zip(ChunkBatch._fields, chunks, unpacked, strict=True):
        np.testing.assert_array_equal(actual, expected, err_msg=name)
        assert actual.dtype == (np.int32 if name == "token_ids" else np.int64)
    np.testing.assert_array_equal(documents_again, numbers)


def test_the_form_of_a_record_does_not_change():
    """Corpora on disk have this form: if it must change, so must FORMAT_VERSION."""
    chunk = ChunkBatch(
        np.array([7, 8, 9], np.int32), np.array([0, 3]), np.array([1, 3]), np.array([0, 2])
    )
    records = pack_records(chunk, np.array([5 + (6 << 16)]), record_dtype(100))
    assert isinstance(records, Records)
    assert records.elements.tolist() == [5, 6, 2, 1, 3, 7, 8, 9]


def test_large_vocabularies_take_wider_elements():
    assert record_dtype(1 << 16) == np.dtype("<u2")
    assert record_dtype((1 << 16) + 1) == np.dtype("<u4")
