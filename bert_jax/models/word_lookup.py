"""The look-up of tokens in a table whose columns FSDP may have split.

Shapes: B batch, L length, D model width, V vocabulary (padded), P parts, W positions of a part.
"""

import math

import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax import lax

from bert_jax.models.logical_axes import constrain_hidden, parts_of

Array = jax.Array


def look_up(table_VD: Array, token_ids_BL: Array, most: int) -> Array:
    """Looks tokens up.

    Under FSDP each device looks up its columns of the table for the others' tokens too, and they
    exchange what they found; to gather the table would move many times as much.

    Args:
      table_VD: float32, a row for each token.
      token_ids_BL: int32.
      most: how many numbers a device may exchange at a time.

    Returns:
      float32 [B, L, D].
    """

    def look_up_part(token_ids_BW: Array) -> Array:
        token_ids_BW = with_logical_constraint(token_ids_BW, ("replica", "length"))
        hidden_BWD = jnp.take(table_VD, token_ids_BW, axis=0)
        hidden_BWD = with_logical_constraint(hidden_BWD, ("replica", "length", "width"))
        return constrain_hidden(hidden_BWD)

    batch, length = token_ids_BL.shape
    parts = _count(length, batch * length * table_VD.shape[1], most)
    if parts == 1:
        return look_up_part(token_ids_BL)
    token_ids_PBW = token_ids_BL.reshape(batch, parts, -1).swapaxes(0, 1)
    hidden_PBWD = lax.map(look_up_part, token_ids_PBW)
    return hidden_PBWD.swapaxes(0, 1).reshape(batch, length, -1)


def _count(length: int, numbers: int, most: int) -> int:
    """Into how many equal parts to split the length, for hidden states of so many numbers."""
    if parts_of("width") == 1:
        return 1
    needed = math.ceil(numbers / (parts_of("batch") * most))
    return next((parts for parts in range(needed, length) if length % parts == 0), length)
