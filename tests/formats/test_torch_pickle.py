"""Tensors come out of ``pytorch_model.bin`` as PyTorch put them in, and nothing else does."""

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.formats.torch_pickle import read_torch_file

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(-3, 3).reshape(2, 3).to(dtype)
    torch.save({"x": tensor, "scalar": tensor[0, 0]}, tmp_path / "w.bin")
    read = read_torch_file(tmp_path / "w.bin")
    wanted = tensor.to(torch.float64).numpy()
    np.testing.assert_array_equal(read["x"].astype(np.float64), wanted)
    assert read["x"].dtype.itemsize == tensor.element_size()
    assert read["scalar"].shape == ()


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    data=st.data(),
)
@settings(max_examples=30)
def test_views_of_one_storage(
    shape: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("views") / "w.bin"
    base = torch.arange(int(np.prod(shape)) + 2, dtype=torch.float32)
    view = base[2:].reshape(shape).permute(*data.draw(st.permutations(range(len(shape)))))
    view = view[data.draw(st.integers(0, 2)) :]
    state = collections.OrderedDict(view=torch.nn.Parameter(view), base=base)
    torch.save(state, path)
    read = read_torch_file(path)
    np.testing.assert_array_equal(read["view"], view.numpy())
    np.testing.assert_array_equal(read["base"], base.numpy())


class _Runs:
    """Its pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def archive(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path


@pytest.mark.parametrize(
    "function, name",
    [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval"), (getattr, "builtins.getattr")],
)
def test_a_pickle_that_runs_code_is_refused(function: Any, name: str, tmp_path: Path) -> None:
    victim = tmp_path / "made"
    pickled = pickle.dumps({"x": _Runs(function, str(victim))}, protocol=4)
    path = archive(tmp_path / "w.bin", pickled)
    with pytest.raises(UserError, match=f"would run {name} when it is loaded"):
        read_torch_file(path)
    assert not victim.exists()


def test_torch_s_own_names_are_refused_but_for_a_few(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "w.bin")
    with pytest.raises(UserError, match=r"would run torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(tmp_path / "w.bin")


def test_the_old_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"format of PyTorch before 1\.6"):
        read_torch_file(path)
    path.write_bytes(pickle.dumps(_Runs(os.mkdir, str(tmp_path / "made"))))
    with pytest.raises(UserError, match="which could run code"):
        read_torch_file(path)
    assert not (tmp_path / "made").exists()


@given(cut=st.floats(0, 0.999))
@settings(max_examples=30)
def test_a_truncated_file_is_told(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(50)}, buffer)
    path = tmp_path_factory.mktemp("cut") / "w.bin"
    path.write_bytes(buffer.getvalue()[: int(cut * len(buffer.getvalue()))])
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_torch_file(path)


def test_a_storage_of_many_tensors_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, reads = zipfile.ZipFile.read, []

    def read_and_note(archive: zipfile.ZipFile, name: Any) -> bytes:
        reads.append(getattr(name, "filename", name))
        return original(archive, name)

    monkeypatch.setattr(zipfile.ZipFile, "read", read_and_note)
    path = tmp_path / "w.bin"
    flat = torch.arange(1_000_000.0)
    torch.save({f"part {i}": flat[i * 10_000 : (i + 1) * 10_000] for i in range(100)}, path)
    read = read_torch_file(path)
    assert [name for name in reads if "/data/" in name] == ["w/data/0"]
    np.testing.assert_array_equal(np.concatenate(list(read.values())), flat)


def test_a_tensor_that_is_to_be_negated_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch._neg_view(torch.ones(3))}, tmp_path / "w.bin")
    with pytest.raises(
        UserError, match="cannot be read here: a tensor is not what its numbers say"
    ):
        read_torch_file(tmp_path / "w.bin")


def test_compressed_tensors_are_refused(tmp_path: Path) -> None:
    stored, compressed = tmp_path / "w.bin", tmp_path / "small.bin"
    torch.save({"x": torch.zeros(100_000)}, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(compressed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(
        UserError, match="cannot be read here: its tensors are compressed; load it with"
    ):
        read_torch_file(compressed)


class _Storage:
    """Pickled as a reference to bytes of the archive."""


def tensor_file(path: Path, offset: int, shape: Any, strides: Any, kind: str = "storage") -> Path:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, _Storage):
                return (kind, torch.FloatStorage, "0", "cpu", 4)
            return None

    buffer = io.BytesIO()
    rebuilt = _Runs(torch._utils._rebuild_tensor_v2, _Storage(), offset, shape, strides, False, {})
    Pickler(buffer, protocol=2).dump({"x": rebuilt})
    return archive(path, buffer.getvalue(), {"0": np.arange(4, dtype=np.float32).tobytes()})


def test_no_tensor_reaches_outside_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    read = read_torch_file(tensor_file(path, 1, (3,), (1,)))
    np.testing.assert_array_equal(read["x"], [1, 2, 3])
    for offset, shape, strides in (
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (3, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (-1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2,), ("1",)),
    ):
        with pytest.raises(UserError, match="damaged or incomplete"):
            read_torch_file(tensor_file(path, offset, shape, strides))
    with pytest.raises(UserError, match="unknown kind of reference 'module'"):
        read_torch_file(tensor_file(path, 0, (1,), (1,), kind="module"))


@pytest.mark.parametrize("content", [3, [1, 2], {"x": 1}, {"state_dict": {}}])
def test_something_else_than_weights_is_refused(content: Any, tmp_path: Path) -> None:
    path = archive(tmp_path / "w.bin", pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="something else than tensors by name"):
        read_torch_file(path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as file:
        file.writestr("readme", "nothing")
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_torch_file(tmp_path / "w.bin")
