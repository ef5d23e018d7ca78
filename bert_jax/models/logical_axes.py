"""What the mesh in force makes of logical axes, by the rules in force (`training/sharding.py`)."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint

Array = jax.Array
MeshAxes: TypeAlias = str | tuple[str, ...] | None


def constrain_hidden(hidden_BLD: Array) -> Array:
    """Pins hidden states [B, L, D] to the mesh axes of "batch" and "length"; the width stays whole.

    Without it the partitioner may follow the weights' sharding instead of the batch's. It does
    nothing when no logical axis rules are in force.
    """
    constrained_BLD: Array = with_logical_constraint(hidden_BLD, ("batch", "length", None))
    return constrained_BLD


def dividing_axes(name: str, size: int) -> MeshAxes:
    """The mesh axes of a logical axis of a size, for kernels, which the partitioner cannot split.

    None without a mesh, or where they do not divide it, so that it is computed whole everywhere.
    """
    if jax.sharding.get_abstract_mesh().empty or size % parts_of(name):
        return None
    (axes,) = logical_to_mesh_axes((name,)) or (None,)
    return axes


def on_each_device(
    function: Callable[..., Array], in_specs: Any, out_specs: Any
) -> Callable[..., Array]:
    """A kernel's function of each device's parts, as one of whole arrays.

    The partitioner of `jit` cannot look into a kernel.

    Args:
      function: of arrays, which gives one.
      in_specs: how the mesh in force splits each.
      out_specs: how it splits the result.

    Returns:
      The function itself without a mesh.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    mapped: Callable[..., Array] = jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,  # a kernel does not say over which axes its outputs differ
    )
    return mapped


def parts_of(name: str) -> int:
    """Into how many parts the devices split a logical axis: 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    (axes,) = logical_to_mesh_axes((name,)) or (None,)
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[axis] for axis in names)
