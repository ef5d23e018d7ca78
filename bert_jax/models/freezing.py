"""Which of a model's parameters are trained."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.models.adaptation import ENCODER, adaptation_paths

PyTree = Any


@dataclasses.dataclass(frozen=True)
class FreezeOptions:
    """What stays as it is. By default all is trained, or with LoRA and adapters all but the base.

    Attributes:
      embeddings: freeze the embeddings: tables and LayerNorm.
      layers: freeze the lowest so many layers, with what adapts them. The embeddings are a choice
        of their own.
      encoder: freeze all of the encoder's own parameters, so that only the heads and the pooler are
        trained, and what adapts the encoder. A model with LoRA or adapters is always trained so.

    Raises:
      UserError: `layers` is negative.
    """

    embeddings: bool = False
    layers: int = 0
    encoder: bool = False

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise UserError(f"freeze.layers is {self.layers}; give 0 for none, or more.")

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "FreezeOptions":
        """Builds the options from keys and values, such as an `ml_collections.ConfigDict`.

        Raises:
          UserError: a key is unknown, or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in config:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise UserError(
                    f"Unknown key freeze.{key} (did you mean freeze.{nearest}?); the keys are "
                    f"{', '.join(known)}."
                )
        return cls(**{key: config[key] for key in config})


def trainable(params: PyTree, options: FreezeOptions) -> PyTree:
    """Says of every parameter whether it is trained.

    Args:
      params: the parameters, real or abstract, without flax's boxes; only paths and shapes count.
      options: what is frozen.

    Returns:
      A tree like `params` of bools; where only the upper ones of stacked layers are trained, of
      bool arrays [layers, 1, ...], to be broadcast.

    Raises:
      UserError: the options name what the model does not have, or leave nothing to train.
    """
    flat = flatten_dict(params)
    inside = [path for path in flat if path[0] == ENCODER]
    if options != FreezeOptions() and not inside:
        raise UserError("The model has no encoder to freeze; remove the freeze settings.")
    adaptation = adaptation_paths(flat)
    trained: dict[tuple[str, ...], bool | np.ndarray] = dict.fromkeys(flat, True)
    for path in inside:
        if path[1] == "embeddings" and options.embeddings:
            trained[path] = False
        if path[1] == "layers" and options.layers:
            trained[path] = _upper_layers(flat[path].shape, options.layers)
        if path not in adaptation and (options.encoder or adaptation):
            trained[path] = False
    if all(is_trained is False for is_trained in trained.values()):
        raise UserError(
            "The freeze settings leave no parameter to train; freeze less, or give the model a "
            "head, LoRA or adapters."
        )
    return unflatten_dict(trained)


def _upper_layers(shape: tuple[int, ...], frozen: int) -> bool | np.ndarray:
    """Whether each layer of a stacked parameter is trained."""
    layers, *rest = shape
    if frozen > layers:
        raise UserError(f"freeze.layers is {frozen}, and the model has {layers} layers.")
    if frozen == layers:
        return False
    return (np.arange(layers) >= frozen).reshape(layers, *(1 for _ in rest))
