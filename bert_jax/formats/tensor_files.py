"""Reading the weights of a Hugging Face directory as NumPy arrays, whichever file holds them.

No file is trusted: safetensors and msgpack hold data only, and of a pickle nothing is run.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict

from bert_jax.errors import UserError
from bert_jax.formats.json_file import read_object
from bert_jax.formats.torch_pickle import read_torch_file

SAFETENSORS = "model.safetensors"
_TORCH = "pytorch_model.bin"
_FLAX = "flax_model.msgpack"
_INDEX = ".index.json"


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Reads all weights of a directory under the names and in the shapes of PyTorch's modules.

    The first that is there counts: ``model.safetensors``, ``pytorch_model.bin`` (each whole, or in
    shards that ``….index.json`` lists), ``flax_model.msgpack``.

    Returns:
      Arrays by name, such as ``bert.pooler.dense.weight`` [out, in], in the file's own types.

    Raises:
      UserError: there are no weights, or they cannot be read.
    """
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
        SAFETENSORS: _read_safetensors,
        _TORCH: read_torch_file,
    }
    for name, read in readers.items():
        if (directory / name).is_file():
            return read(directory / name)
        if (directory / (name + _INDEX)).is_file():
            return _read_shards(directory / (name + _INDEX), read)
    if (directory / _FLAX).is_file():
        return _read_flax(directory / _FLAX)
    raise UserError(
        f"{directory} has no weights that can be read; it needs one of {SAFETENSORS}, {_TORCH} and "
        f"{_FLAX}"
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened lazily, so that an error names the file whatever part of it is damaged.
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # AttributeError: of types that NumPy has not.
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error


def _read_shards(
    index: Path, read: Callable[[Path], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    file_of = read_object(index).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(n, str) for n in file_of.values()):
        raise UserError(f"{index} is damaged: it has no weight_map of file names; copy it again")
    files = sorted(set(file_of.values()))
    tensors: dict[str, np.ndarray] = {}
    for name in files:
        shard = index.parent / name
        if shard.name != name or not shard.is_file():
            raise UserError(f"{index} names the file {name!r}, which is not beside it; copy it too")
        tensors |= read(shard)
    for name in file_of:
        if name not in tensors:
            raise UserError(f"{index} promises {name}, which {file_of[name]} lacks; copy it again")
    return tensors


def _read_flax(path: Path) -> dict[str, np.ndarray]:
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        leaves: Mapping[str, Any] = flatten_dict(tree, sep="/")
        return dict(from_flax_name(name, np.asarray(leaf)) for name, leaf in leaves.items())
    except Exception as error:  # msgpack has no one class for what a damaged file may raise
        raise _damaged(path, error) from error


def from_flax_name(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """A tensor of a Flax (or TF1) module as PyTorch's module has it: dense kernels transposed."""
    *modules, leaf = name.split("/")
    if leaf == "kernel":
        array = array.T
    if leaf in ("kernel", "scale", "embedding"):
        leaf = "weight"
    return ".".join([*modules, leaf]), array


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or incomplete ({error}); copy it again")
