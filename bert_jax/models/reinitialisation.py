"""Forgetting the top of a pretrained encoder before it is fine-tuned."""

from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.errors import UserError
from bert_jax.models.adaptation import ENCODER

PyTree = Any


def reinitialise_top_layers(params: PyTree, fresh_params: PyTree, count: int) -> PyTree:
    """Replaces the pooler and the encoder's top layers by random ones.

    The top layers are specialised in pretraining; starting them anew makes fine-tuning on few
    examples better and steadier (Zhang et al., arXiv:2006.05987, section 5).

    Args:
      params: of a pretrained model, its encoder's layers stacked on the first axis.
      fresh_params: random parameters of the same tree.
      count: how many of the highest layers are replaced; with 0 the pooler stays too.

    Raises:
      UserError: `count` is negative or more than there are layers.
    """
    pretrained_layers, fresh_layers = (tree[ENCODER]["layers"] for tree in (params, fresh_params))
    layers = jax.tree.leaves(pretrained_layers)[0].shape[0]
    if not 0 <= count <= layers:
        raise UserError(
            f"{count} top layers cannot be reinitialised in a model of {layers}; give 0 to "
            f"{layers}."
        )
    if count == 0:
        return params

    def replace_top(pretrained: jax.Array, fresh: jax.Array) -> jax.Array:
        return jnp.concatenate([pretrained[: layers - count], fresh[layers - count :]])

    mixed = jax.tree.map(replace_top, pretrained_layers, fresh_layers)
    pooler = {name: fresh_params[name] for name in params if name == "pooler"}
    return {**params, **pooler, ENCODER: {**params[ENCODER], "layers": mixed}}
