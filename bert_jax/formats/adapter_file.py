"""What adapts a shared encoder, in a small file of its own: LoRA or adapters, and the heads.

A safetensors file. Its tensors are named by their paths in the model's tree; its metadata hold the
model's description and the fingerprint of the base encoder, without which the file is of no use.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from bert_jax.errors import UserError
from bert_jax.models.adaptation import ENCODER, adaptation_params, base_params
from bert_jax.models.config import BertConfig
from bert_jax.models.description import ModelDescription
from bert_jax.training.atomic_file import write_atomically

PyTree = Any

_FORMAT = "bert_jax adapter"
_METADATA = {"format", "description", "base_fingerprint"}
_VOCABULARY_TABLE = f"{ENCODER}/embeddings/word"


class Adapter(NamedTuple):
    """What a file holds.

    Attributes:
      description: of the adapted model.
      base_fingerprint: of the encoder that it was trained on.
      tensors: by their paths in the adapted model's tree.
    """

    description: ModelDescription
    base_fingerprint: str
    tensors: dict[str, np.ndarray]


def base_fingerprint(params: PyTree, config: BertConfig) -> str:
    """The SHA-256, in hexadecimal, of an encoder without its adaptation and heads.

    It is of the names, shapes and float32 values of its arrays. Of the word table only the real
    rows count, so that it does not depend on how the table is padded.

    Args:
      params: of any model of this encoder.
      config: of the encoder.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(base_params(params), sep="/").items()):
        array = np.asarray(leaf, "<f4", order="C")
        if name == _VOCABULARY_TABLE:
            array = array[: config.vocabulary_size]
        digest.update(json.dumps([name, array.shape]).encode())
        digest.update(array.data)
    return digest.hexdigest()


def save_adapter(
    path: str | Path, params: PyTree, description: ModelDescription, fingerprint: str
) -> None:
    """Writes what a model has beside the encoder that it shares with others.

    That is LoRA or adapters, with adapters the encoder's LayerNorms, and all that stands on the
    encoder: pooler and heads.

    Args:
      path: the file, conventionally `.safetensors`; its directory must exist.
      params: of the adapted model.
      description: of the adapted model.
      fingerprint: the `base_fingerprint` of the model that it was trained from.

    Raises:
      UserError: the encoder itself was trained too, or the file cannot be written.
    """
    config = description.config
    # Beside adapters LayerNorms are trained, so that the base cannot be told from what it became.
    if not config.adapter_width and fingerprint != base_fingerprint(params, config):
        raise UserError(
            f"{path} was not written: the model's encoder is not the base that it should share; "
            "give the base that it was trained from, with its encoder frozen"
        )
    heads = {name: tree for name, tree in params.items() if name != ENCODER}
    tensors = flatten_dict({**adaptation_params(params), **heads}, sep="/")
    metadata = {
        "format": _FORMAT,
        "description": description.to_json(),
        "base_fingerprint": fingerprint,
    }
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in tensors.items()}
    write_atomically(path, safetensors.numpy.save(arrays, metadata))


def read_adapter(path: str | Path) -> Adapter:
    """Reads what `save_adapter` wrote.

    Raises:
      UserError: the file is missing, damaged or of another format.
    """
    try:
        with safetensors.safe_open(Path(path).expanduser(), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a file that save_adapter wrote") from None
    # AttributeError: of types that NumPy has not.
    except (OSError, safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file: {error}") from None
    if metadata.get("format") != _FORMAT or not metadata.keys() >= _METADATA:
        raise UserError(f"{path} is no adapter file; give one that save_adapter wrote")
    try:
        description = ModelDescription.from_json(metadata["description"])
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return Adapter(description, metadata["base_fingerprint"], tensors)
