"""The one table between our parameters and the tensors of ``transformers``' PyTorch models.

Ours stack the layers, fuse query, key and value, and pad the vocabulary; theirs do none of it, and
keep a dense kernel as [out, in]. Every other format is first brought to PyTorch's names.

Shapes: V vocabulary (real rows), D model width, N heads, K head width.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.models.description import Head, ModelDescription
from bert_jax.training.sharding import unbox

ENCODER_PREFIX = "bert."
# Our module: their module. Dense layers and LayerNorms tell themselves apart by their leaves.
_EMBEDDINGS = {
    "encoder/embeddings/word": "bert.embeddings.word_embeddings.weight",
    "encoder/embeddings/position": "bert.embeddings.position_embeddings.weight",
    "encoder/embeddings/segment": "bert.embeddings.token_type_embeddings.weight",
}
_LAYER_MODULES = {
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward/inner": "intermediate.dense",
    "feed_forward/output": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_MODULES = {
    "encoder/embeddings/norm": "bert.embeddings.LayerNorm",
    "pooler/projection": "bert.pooler.dense",
    "mlm_head/transform": "cls.predictions.transform.dense",
    "mlm_head/norm": "cls.predictions.transform.LayerNorm",
    "next_sentence_head": "cls.seq_relationship",
    "classifier": "classifier",
}
_QUERY_KEY_VALUE = "encoder/layers/attention/query_key_value"
WORD_TABLE = _EMBEDDINGS["encoder/embeddings/word"]
_MLM_BIAS = "cls.predictions.bias"
# The output layer over the vocabulary is the word table once more, and so is its bias.
TIED = {"cls.predictions.decoder.weight": WORD_TABLE, "cls.predictions.decoder.bias": _MLM_BIAS}


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One of their tensors, and the part of one of our parameters that it is.

    Attributes:
      name: theirs.
      shape: theirs.
      parameter: path of ours.
      part: index of the part.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    part: tuple[Any, ...] = ()

    @property
    def is_kernel(self) -> bool:
        return self.parameter.endswith("/kernel")

    def export(self, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """Their tensor from our parameters."""
        part = parameters[self.parameter][self.part]
        if self.is_kernel:
            return part.reshape(self.shape[::-1]).T
        return part.reshape(self.shape)

    def fill(self, parameters: Mapping[str, np.ndarray], theirs: np.ndarray) -> None:
        """Writes their tensor into our parameters."""
        parameter = parameters[self.parameter]
        part = theirs.T if self.is_kernel else theirs
        parameter[self.part] = part.reshape(parameter[self.part].shape)


def to_tensors(params: Any, description: ModelDescription) -> dict[str, np.ndarray]:
    """Our parameters (or their gradients) under PyTorch's names.

    Args:
      params: tree of arrays, as ``description.model()`` takes it.
      description: the model.

    Returns:
      Arrays in the parameters' type: kernels as [out, in], vocabulary tables without padding rows,
      tied tensors once.

    Raises:
      UserError: there is a parameter that BERT has not.
    """
    parameters = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    shapes = {name: leaf.shape for name, leaf in parameters.items()}
    table = list(_table(shapes, description))
    for name in parameters.keys() - {tensor.parameter for tensor in table}:
        raise UserError(
            f"the model has {name}, for which transformers' BERT has no place; merge what was "
            "added to the encoder first"
        )
    return {tensor.name: tensor.export(parameters) for tensor in table}


def to_params(
    tensors: Mapping[str, np.ndarray], description: ModelDescription, origin: str
) -> tuple[Any, list[str]]:
    """Parameters from tensors with PyTorch's names.

    What the heads lack is initialised, as a run would do it.

    Args:
      tensors: as ``canonical`` gives them, of any floating type.
      description: the model to fill.
      origin: where they came from, for messages.

    Returns:
      Tree of float32 NumPy arrays, and a sentence for each tensor that was not used or was missing.

    Raises:
      UserError: a tensor of the encoder is missing, or one has another shape.
    """
    abstract = flatten_dict(_shapes(description), sep="/")
    table = list(_table({name: leaf.shape for name, leaf in abstract.items()}, description))
    missing = [tensor for tensor in table if tensor.name not in tensors]
    # Before anything is allocated: a config may ask for more than there is memory.
    for tensor in table:
        if tensor.name in tensors:
            _check_fit(tensor, tensors[tensor.name], origin)
        else:
            _check_missing(tensor, origin)
    parameters = {name: np.zeros(leaf.shape, np.float32) for name, leaf in abstract.items()}
    fresh = _initialise(description) if missing else {}
    for tensor in table:
        theirs = tensors[tensor.name] if tensor.name in tensors else tensor.export(fresh)
        tensor.fill(parameters, theirs)
    notes = [f"{tensor.name} was missing and was initialised" for tensor in missing]
    unused = sorted(tensors.keys() - {tensor.name for tensor in table})
    notes += [f"{name} was not used: the model has no such part" for name in unused]
    return unflatten_dict(parameters, sep="/"), notes


def _check_missing(tensor: _Tensor, origin: str) -> None:
    if tensor.parameter.startswith("encoder/"):
        raise UserError(
            f"{origin} is no complete BERT encoder: it lacks {tensor.name}; look whether all of "
            "its files were copied"
        )


def _check_fit(tensor: _Tensor, theirs: np.ndarray, origin: str) -> None:
    if theirs.shape != tensor.shape or not _is_floating(theirs):
        raise UserError(
            f"{origin} has {tensor.name} as {theirs.dtype}{list(theirs.shape)}, and its config "
            f"asks for floating-point {list(tensor.shape)}; its config.json belongs to another "
            "model"
        )


def canonical(tensors: Mapping[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    """Tensors under the names of today's ``transformers``, whoever wrote them, tied ones once.

    Raises:
      UserError: the output layer over the vocabulary is not tied to the word table.
    """
    renamed = {}
    has_prefix = any(name.startswith(ENCODER_PREFIX) for name in tensors)
    for name, array in tensors.items():
        # What TF1 and the first PyTorch versions called a LayerNorm's scale and bias.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        # BertModel, saved by itself, stands at the root.
        if not has_prefix and name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = ENCODER_PREFIX + name
        renamed[name] = array
    for copy, original in TIED.items():
        if copy not in renamed:
            continue
        array = renamed.pop(copy)
        if not np.array_equal(renamed.setdefault(original, array), array):
            raise UserError(
                f"{origin} has a {copy} that differs from its {original}; a BERT whose output "
                "layer is not tied to its embeddings cannot be converted"
            )
    return renamed


def _table(
    shapes: Mapping[str, tuple[int, ...]], description: ModelDescription
) -> Iterator[_Tensor]:
    """All of their tensors that a model with these parameters has."""
    vocabulary = description.config.vocabulary_size
    for ours, theirs in _EMBEDDINGS.items():
        rows, width = shapes[ours]
        is_word = theirs == WORD_TABLE
        rows = vocabulary if is_word else rows
        yield _Tensor(theirs, (rows, width), ours, (slice(rows),))
    for layer in range(description.config.layers):
        prefix = f"bert.encoder.layer.{layer}."
        for index, name in enumerate(("query", "key", "value")):
            yield from _module(
                shapes,
                _QUERY_KEY_VALUE,
                f"{prefix}attention.self.{name}",
                part=(layer, index),  # of [layers, 3, N, K]
                kernel_part=(layer, slice(None), index),  # of [layers, D, 3, N, K]
            )
        for ours, theirs in _LAYER_MODULES.items():
            yield from _module(
                shapes, f"encoder/layers/{ours}", prefix + theirs, (layer,), (layer,)
            )
    for ours, theirs in _MODULES.items():
        if f"{ours}/bias" in shapes:
            if theirs == "classifier" and description.head is Head.QUESTION_ANSWERING:
                theirs = "qa_outputs"
            yield from _module(shapes, ours, theirs, (), ())
    if "mlm_head/bias" in shapes:
        yield _Tensor(_MLM_BIAS, (vocabulary,), "mlm_head/bias", (slice(vocabulary),))


def _module(
    shapes: Mapping[str, tuple[int, ...]],
    ours: str,
    theirs: str,
    part: tuple[Any, ...],
    kernel_part: tuple[Any, ...],
) -> Iterator[_Tensor]:
    """The two tensors of a dense layer or a LayerNorm."""
    outputs = _size(shapes[f"{ours}/bias"], part)
    yield _Tensor(f"{theirs}.bias", (outputs,), f"{ours}/bias", part)
    if f"{ours}/kernel" in shapes:
        inputs = _size(shapes[f"{ours}/kernel"], kernel_part) // outputs
        yield _Tensor(f"{theirs}.weight", (outputs, inputs), f"{ours}/kernel", kernel_part)
    else:
        yield _Tensor(f"{theirs}.weight", (outputs,), f"{ours}/scale", part)


def _size(shape: tuple[int, ...], part: tuple[Any, ...]) -> int:
    return np.broadcast_to(False, shape)[part].size


def _shapes(description: ModelDescription) -> Any:
    return jax.eval_shape(lambda key: unbox(description.initialise(key)), jax.random.key(0))


def _initialise(description: ModelDescription) -> dict[str, np.ndarray]:
    params = jax.jit(lambda key: unbox(description.initialise(key)))(jax.random.key(0))
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}


def _is_floating(array: np.ndarray) -> bool:
    # ml_dtypes' bfloat16 is a void type to NumPy.
    return bool(jax.numpy.issubdtype(array.dtype, jax.numpy.floating))
