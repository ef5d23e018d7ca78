"""From pieces of text to records, in this process and in others; and the spool of records."""

import numpy as np
import pytest

from bert_jax.data.chunking import Chunker, chunk_batches
from bert_jax.data.chunks import ChunkBatch, record_dtype, unpack_records
from bert_jax.data.documents import Piece
from bert_jax.data.spool import BUCKETS, Spool, SpooledRecords
from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer

WORDS = ["the", "cat", "sat", "##s", ".", "on", "mat"]


@pytest.fixture(scope="module")
def chunker():
    tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *WORDS], lowercase=True)
    return Chunker(tokenizer, max_length=8)


def pieces(count):
    return [Piece(n, 0, n * 7, "The cats sat. " * (n % 5) + "\nOn the mat") for n in range(count)]


def decoded(chunker, records):
    """[(document, [sentence, ...]), ...] of records."""
    chunks, documents = unpack_records(records)
    found = []
    for c, document in enumerate(documents.tolist()):
        start = chunks.token_offsets[c]
        sentences = []
        for end in chunks.sentence_ends[
            chunks.sentence_offsets[c] : chunks.sentence_offsets[c + 1]
        ]:
            sentences.append(chunker.tokenizer.decode(chunks.token_ids[start:end]))
            start = end
        found.append((document, sentences))
    return found


def test_sentences_fill_chunks(chunker):
    text = "The cats sat. The mat\n\nThe cats."
    keyed = chunker(
        [Piece(3, 0, 11, text), Piece(4, 0, 12, "\u0000"), Piece(70_000, 0, 13, "cat cat")]
    )
    assert decoded(chunker, keyed.records) == [
        (3, ["the cats sat.", "the"]),
        (3, ["mat", "the cats."]),
        (70_000, ["cat cat"]),
    ]
    assert keyed.document_hashes.tolist() == [11, 11, 13]
    assert len(set(keyed.keys.tolist())) == 3


def test_records_do_not_depend_on_workers_or_batches(chunker):
    every = pieces(40)
    (expected,) = chunk_batches([every], chunker, workers=0)
    batches = [every[:1], every[1:17], every[17:]]
    for workers in (0, 2):
        parts = list(chunk_batches(batches, chunker, workers=workers))
        assert len(parts) == 3
        for name in ("keys", "document_hashes"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(expected, name))
        elements = np.concatenate([part.records.elements for part in parts])
        np.testing.assert_array_equal(elements, expected.records.elements)


def test_no_more_batches_are_read_than_are_needed(chunker):
    read = []

    def batches():
        for piece in pieces(30):
            read.append(piece.document)
            yield [piece]

    results = chunk_batches(batches(), chunker, workers=1)
    next(results)
    assert len(read) <= 4
    results.close()


def test_spools_give_every_record_back_by_key(chunker, tmp_path):
    keyed = chunker(pieces(300))
    dtype = record_dtype(chunker.tokenizer.size)
    directories = (tmp_path / "spool", tmp_path / "other")
    bytes_written = 0
    for number, directory in enumerate(directories):
        with Spool(directory) as spool:
            for piece in pieces(300):
                if piece.document % 2 == number:
                    spool.add(chunker([piece]))
        bytes_written += spool.bytes_written
    assert bytes_written == keyed.records.elements.nbytes
    spooled = SpooledRecords(directories, dtype)
    buckets = [spooled.read(bucket) for bucket in range(BUCKETS)]
    keys = np.concatenate([bucket.keys for bucket in buckets])
    np.testing.assert_array_equal(keys, np.sort(keyed.keys))
    order = np.argsort(keyed.keys)
    hashes = np.concatenate([bucket.document_hashes for bucket in buckets])
    np.testing.assert_array_equal(hashes, keyed.document_hashes[order])
    everything = decoded(chunker, keyed.records)
    found = [record for bucket in buckets for record in decoded(chunker, bucket.records)]
    assert found == [everything[i] for i in order]


def test_chunk_batches_are_tuples_of_arrays(chunker):
    chunks, _ = unpack_records(chunker(pieces(3)).records)
    assert isinstance(chunks, ChunkBatch)
    assert chunks.sentence_ends[chunks.sentence_offsets[1:] - 1].tolist() == (
        chunks.token_offsets[1:].tolist()
    )
