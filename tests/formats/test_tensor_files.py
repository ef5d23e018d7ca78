"""Damaged and missing weight files are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.formats.tensor_files import read_tensors

TENSORS = {"a": np.arange(40, dtype=np.float32), "b": np.ones((2, 3), np.float32)}


def test_the_first_kind_that_is_there_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no weights that can be read; it needs one of model"):
        read_tensors(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x00")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x00")
    safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors")
    read = read_tensors(tmp_path)
    assert read.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(read[name], array)


@given(cut=st.floats(0, 0.999))
@settings(max_examples=30)
def test_truncated_safetensors_are_told(
    cut: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    content = safetensors.numpy.save(TENSORS)
    (directory / "model.safetensors").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or incomplete"):
        read_tensors(directory)


RAGGED = b"\x81\xa1a\x92\x91\x01\x92\x01\x02"  # {"a": [[1], [1, 2]]}


@pytest.mark.parametrize(
    "content", [b"", b"\x81\xa1a", b"\xc1", b"\x93\x01\x02\x03", b"\x01", RAGGED]
)
def test_a_damaged_msgpack_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(UserError, match=r"flax_model\.msgpack is damaged or incomplete"):
        read_tensors(tmp_path)


def test_shards_must_all_be_there(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    safetensors.numpy.save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")

    def read(content: object) -> None:
        index.write_text(json.dumps(content))
        read_tensors(tmp_path)

    read({"weight_map": {"a": "one.safetensors"}})
    with pytest.raises(UserError, match=r"names the file 'two\.safetensors', which is not beside"):
        read({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    with pytest.raises(UserError, match=r"names the file '\.\./one\.safetensors'"):
        read({"weight_map": {"a": "../one.safetensors"}})
    with pytest.raises(UserError, match=r"promises b, which one\.safetensors lacks"):
        read({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}})
    for damaged in ({}, {"weight_map": ["a"]}, {"weight_map": {"a": 3}}):
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            read(damaged)
    with pytest.raises(UserError, match=r"index\.json holds no JSON object"):
        read([])
    index.write_text('{"weight_map":')
    with pytest.raises(UserError, match=r"index\.json is damaged: it is no JSON"):
        read_tensors(tmp_path)
