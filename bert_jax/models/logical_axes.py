"""What the mesh in force makes of logical axes, by the rules in force (`training/sharding.py`)."""

import math

import jax
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint

Array = jax.Array


def constrain_hidden(hidden_BLD: Array) -> Array:
    """Pins hidden states [B, L, D] to the mesh axes of "batch" and "length"; the width stays whole.

    Without it the partitioner may follow the weights' sharding instead of the batch's. It does
    nothing when no logical axis rules are in force.
    """
    constrained_BLD: Array = with_logical_constraint(hidden_BLD, ("batch", "length", None))
    return constrained_BLD


def parts_of(name: str) -> int:
    """Into how many parts the devices split a logical axis: 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    (axes,) = logical_to_mesh_axes((name,)) or (None,)
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[axis] for axis in names)
