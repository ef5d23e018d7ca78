"""What adapts a shared encoder, in a small file of its own: LoRA or adapters, and the heads.

A safetensors file. Its tensors are named by their paths in the model's tree; its metadata hold the
model's description and the fingerprint of the base encoder, without which the file is of no use.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.models.adaptation import ENCODER, adaptation_params, base_params
from bert_jax.models.config import BertConfig
from bert_jax.models.description import ModelDescription
from bert_jax.pretrained import Pretrained
from bert_jax.training.atomic_file import write_atomically
from bert_jax.training.sharding import unbox

PyTree = Any

_FORMAT = "bert_jax adapter"
_METADATA = {"format", "description", "base_fingerprint"}
_VOCABULARY_TABLE = f"{ENCODER}/embeddings/word"


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


def load_adapter(path: str | Path, base: Pretrained) -> Pretrained:
    """Puts what `save_adapter` wrote on the encoder that it was trained on.

    The base is not changed: several adapted models may share its arrays.

    Args:
      path: the file.
      base: the encoder; its heads, and LoRA if it has any, are left out.

    Returns:
      The adapted model, with the base's vocabulary.

    Raises:
      UserError: the file is missing, damaged or of another format, or the base is another one.
    """
    metadata, tensors = _read(path)
    if metadata["base_fingerprint"] != base_fingerprint(base.params, base.config):
        raise UserError(
            f"{path} was trained on another base model (fingerprint "
            f"{metadata['base_fingerprint'][:12]}) than the one given; load it onto that one"
        )
    try:
        description = ModelDescription.from_json(metadata["description"])
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    flat = flatten_dict(base_params(base.params)) | {
        tuple(name.split("/")): jnp.asarray(array) for name, array in tensors.items()
    }
    expected = flatten_dict(
        jax.eval_shape(lambda key: unbox(description.initialise(key)), jax.random.key(0))
    )
    found, wanted = (
        {name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()} for tree in (flat, expected)
    )
    for name, _ in sorted(found.items() ^ wanted.items()):
        raise UserError(
            f"{path} is damaged: its parameter {'/'.join(name)} is missing, superfluous or of a "
            "wrong shape or type; save it anew"
        )
    return Pretrained(description, unflatten_dict(flat), base.tokenizer)


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the tensors of a file."""
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
    return metadata, tensors
