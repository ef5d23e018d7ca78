"""Reading ``pytorch_model.bin`` without PyTorch and without running what is in it.

``torch.save`` (since PyTorch 1.6) writes a zip archive: ``data.pkl`` describes the tensors, and
``data/KEY`` holds the bytes of a storage that tensors are views of. A pickle may name any function
and have it called. Here the few names that a state dict needs are known, each stands for something
inert, and any other is refused before it is looked up.
"""

import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bert_jax.errors import UserError

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class _Storage(NamedTuple):
    """Where the bytes of some tensors lie: the type's name and the archive's key."""

    type_name: str
    key: str


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    backward_hooks: Any,
    metadata: Any = None,
) -> _Tensor:
    if metadata:  # such as that the numbers are to be negated
        raise _OtherwiseError(f"a tensor is not what its numbers say ({metadata})")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: _Tensor, *rest: Any) -> _Tensor:
    return tensor


class _StateDictUnpickler(pickle.Unpickler):
    """Builds dictionaries of ``_Tensor`` and can build nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _rebuild_tensor
            case "torch._utils", "_rebuild_parameter":
                return _rebuild_parameter
            case "torch", _ if name in _DTYPES:
                return name
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, type_name, key, *_ = pid
        if kind != "storage":
            raise ValueError(f"unknown kind of reference {kind!r}")
        return _Storage(type_name, key)


class _RefusedError(Exception):
    """A pickle names something that no state dict needs."""


class _OtherwiseError(Exception):
    """A file is whole, and no state dict of BERT's as PyTorch writes it."""


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict that ``torch.save`` wrote.

    Returns:
      Arrays by name, in the file's own types.

    Raises:
      UserError: the file is damaged, older than PyTorch 1.6, or holds else than plain tensors.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"
        raise UserError(
            f"{path} is in the format of PyTorch before 1.6, which could run code when it is read; "
            "load it with PyTorch where you trust it, and save it as model.safetensors"
            if is_pickle
            else f"{path} is damaged or incomplete (it is no zip archive); copy it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive)
    except _RefusedError as refused:
        raise UserError(
            f"{path} would run {refused} when it is loaded, which no BERT's weights need; nothing "
            "of it was run; do not load it, and take model.safetensors from a source you trust"
        ) from None
    except _OtherwiseError as otherwise:
        raise UserError(
            f"{path} cannot be read here: {otherwise}; load it with PyTorch where you trust it, "
            "and save the model's state dict as model.safetensors"
        ) from None
    except Exception as error:  # unpickling what is damaged may raise anything
        raise UserError(f"{path} is damaged or incomplete ({error}); copy it again") from error


def _read_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    names = archive.namelist()
    # The folder is named after the file that was saved, whatever the file is called now.
    prefix = next(name for name in names if name.endswith("data.pkl")).removesuffix("data.pkl")
    byteorder = prefix + "byteorder"
    if byteorder in names and archive.read(byteorder) != b"little":
        raise _OtherwiseError("it was written on a big-endian machine")
    with archive.open(prefix + "data.pkl") as file:
        state = _StateDictUnpickler(file).load()
    if not isinstance(state, Mapping) or not all(
        isinstance(value, _Tensor) for value in state.values()
    ):
        raise _OtherwiseError("it holds something else than tensors by name")
    # Each storage once: one may hold all tensors.
    different = {tensor.storage for tensor in state.values()}
    storages = {storage: _read_storage(archive, prefix, storage) for storage in different}
    return {str(name): _view(storages[tensor.storage], tensor) for name, tensor in state.items()}


def _read_storage(archive: zipfile.ZipFile, prefix: str, storage: _Storage) -> np.ndarray:
    entry = archive.getinfo(f"{prefix}data/{storage.key}")
    # PyTorch compresses nothing, and what is compressed could be of any size.
    if entry.compress_type != zipfile.ZIP_STORED:
        raise _OtherwiseError("its tensors are compressed")
    return np.frombuffer(archive.read(entry), _DTYPES[storage.type_name])


def _view(elements: np.ndarray, tensor: _Tensor) -> np.ndarray:
    # as_strided trusts its arguments, and a file is not to be trusted.
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError("a tensor has a negative size")
    if 0 not in tensor.shape and tensor.offset + last >= elements.size:
        raise ValueError("a tensor reaches past its storage")
    return np.lib.stride_tricks.as_strided(
        elements[tensor.offset :],
        tensor.shape,
        [step * elements.itemsize for step in tensor.strides],
        writeable=False,
    )
