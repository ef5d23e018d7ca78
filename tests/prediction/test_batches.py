import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.text_rows import make_text_rows
from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.prediction.batches import apply_to_rows, apply_to_stream, mesh_of
from bert_jax.training.sharding import make_mesh, replicated

TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, "a", "b"], lowercase=True)


def _rows(texts):
    return make_text_rows(texts, None, TOKENIZER, max_length=200)


def _sum(batch):
    return {"sum": np.asarray(batch["token_ids"]).sum(axis=1), "length": batch["lengths"]}


def _expected(text):
    ids = [TOKENIZER.cls_id, *TOKENIZER.encode_batch([text])[0], TOKENIZER.sep_id]
    return sum(ids), len(ids)  # [PAD] is 0


@given(
    st.lists(st.text("ab ", max_size=90), max_size=20),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_a_stream_of_any_length_comes_out_in_order(texts, batch_size, block_size):
    shapes = set()

    def function(batch):
        shapes.add(batch["token_ids"].shape)
        return _sum(batch)

    blocks = apply_to_stream(
        function, iter(texts), _rows, max_length=200, batch_size=batch_size, block_size=block_size
    )
    found = [
        (text, int(total), int(length))
        for block, _, outputs in blocks
        for text, total, length in zip(block, outputs["sum"], outputs["length"], strict=True)
    ]
    assert found == [(text, *_expected(text)) for text in texts]
    assert all(rows <= batch_size and length in (32, 64, 96) for rows, length in shapes)


def _sums_of_sequences(batch):
    if batch["lengths"].ndim == 1:
        return _sum(batch)
    sums = np.zeros_like(batch["lengths"])
    for row, (ids, lengths) in enumerate(zip(batch["token_ids"], batch["lengths"], strict=True)):
        for place, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
            sums[row, place] = ids[end - length : end].sum()
    return {"sum": sums, "length": batch["lengths"]}


@given(st.lists(st.text("ab ", max_size=150), min_size=1, max_size=60), st.integers(1, 20))
def test_short_rows_share_rows_and_come_out_in_order(texts, batch_size):
    shapes = set()

    def function(batch):
        shapes.add((batch["lengths"].ndim, *batch["token_ids"].shape))
        return _sums_of_sequences(batch)

    found = apply_to_rows(function, _rows(texts), max_length=200, batch_size=batch_size, packs=True)
    assert list(zip(found["sum"], found["length"], strict=True)) == list(map(_expected, texts))
    packed = [shape for shape in shapes if shape[0] == 2]
    assert all(length == 64 and rows <= max(1, batch_size // 4) for _, rows, length in packed)
    short = sum(_expected(text)[1] <= 64 for text in texts)
    assert bool(packed) == (short > batch_size)


def test_many_batches_are_padded_less():
    shapes = set()

    def function(batch):
        shapes.add(batch["token_ids"].shape)
        return _sum(batch)

    rows = _rows(["a " * number for number in range(1, 180)] * 4)
    apply_to_rows(function, rows, max_length=200, batch_size=8)
    lengths = sorted({length for _, length in shapes})
    assert lengths == [*range(8, 65, 8), 80, 96, 112, 128, 192]
    few = _rows(["a", "a " * 40])
    shapes.clear()
    apply_to_rows(function, few, max_length=200, batch_size=1)
    assert shapes == {(1, 32), (1, 64)}


def test_one_batch_is_dispatched_before_the_last_is_fetched():
    events = []

    class Running:
        def __init__(self, batch):
            self.lengths = np.asarray(batch["lengths"])
            events.append("dispatch")

        def __array__(self, dtype=None, copy=None):
            events.append("fetch")
            return self.lengths

    apply_to_rows(Running, _rows(["a", "b", "a b"]), max_length=200, batch_size=1)
    assert events == ["dispatch", "dispatch", "fetch", "dispatch", "fetch", "fetch"]


def test_only_one_block_is_read_ahead():
    read = []

    def texts():
        for number in range(100):
            read.append(number)
            yield "a"

    blocks = apply_to_stream(_sum, texts(), _rows, max_length=200, batch_size=4, block_size=4)
    next(blocks)
    blocks.close()
    assert read == list(range(8))


def test_no_row_is_padded_beyond_the_longest_input_of_the_model():
    shapes = []

    def function(batch):
        shapes.append(batch["token_ids"].shape)
        return batch["lengths"]

    rows = make_text_rows(["a " * 50], None, TOKENIZER, max_length=40)
    assert apply_to_rows(function, rows, max_length=40, batch_size=8).tolist() == [40]
    assert shapes == [(1, 40)]


def test_batches_are_laid_out_on_the_mesh_of_the_parameters():
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    params = {"w": jax.device_put(jnp.ones(3), replicated(mesh))}
    assert mesh_of(params) == mesh
    assert mesh_of({"w": np.ones(3)}) is None
    seen = []

    def function(batch):
        seen.append(batch["token_ids"].sharding.mesh)
        return batch["lengths"]

    found = apply_to_rows(function, _rows(["a"]), max_length=200, batch_size=1, mesh=mesh)
    assert seen == [mesh] and found.tolist() == [3]


def test_a_batch_holds_something():
    with pytest.raises(UserError, match="batch_size is 0"):
        apply_to_rows(_sum, _rows(["a"]), max_length=200, batch_size=0)
