"""Where arrays live: the device mesh, and the one table from logical axes to mesh axes."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter -> mesh axis that splits it; None keeps it whole on every device.
RULES: Mapping[str, str | None] = {
    "layers": None,
    "vocabulary": "tensor",
    "position": None,
    "segment": None,
    "width": "fsdp",
    "qkv": None,
    "heads": "tensor",
    "head_width": None,
    "feed_forward": "tensor",
    "classes": None,
}

# TPUs hold matrices in tiles of so many rows. Of fewer, their compiler gathers and scatters several
# parameters at once by all-reduces of all of them, on every chip.
_TILE_ROWS = 8

# Examples are spread over every device that holds a different part of the batch.
BATCH_AXES = ("data", "fsdp")

# The same for activations, which flax constrains by these names. A "replica" is what a "batch" is
# before fsdp splits it: the examples of devices that hold one copy of the parameters together.
ACTIVATION_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("replica", "data"),
    ("length", None),
    *RULES.items(),
)


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the (data, fsdp, tensor) mesh over devices.

    Args:
      shape: size of each mesh axis; one of them may be -1, for all devices that are left.
      devices: to build it over; by default all of the run's.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or hosts have unequally many.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = [shape[axis] for axis in MESH_AXES]
    described = ", ".join(f"mesh.{axis}={shape[axis]}" for axis in MESH_AXES)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"{described}: each size must be at least 1, and only one may be -1")
    if -1 in sizes and count % (known := -math.prod(sizes)) == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise UserError(f"{described} does not fit the {count} devices of this run")
    arranged = _arrange(sizes, jax.devices() if devices is None else devices)
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arrange(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Puts devices in the mesh's order, those that send each other most next to each other.

    ``jax.make_mesh`` refuses devices of several slices, which is what JAX calls hosts that only a
    data-centre network connects: TPU slices, but nodes of GPUs too. The first axes, which send each
    other least, are spread over them.
    """
    held = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(held) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if len(set(held.values())) > 1:
        raise UserError(
            f"the {len(devices)} devices of this run are on {len(held)} hosts or slices of unequal "
            "size; give it as many of each"
        )
    across, left = [], len(held)
    for size in sizes:
        across.append(math.gcd(size, left))
        left //= across[-1]
    within = [size // spread for size, spread in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def process_shards(mesh: Mesh) -> tuple[int, ...]:
    """Which of those parts this process holds and has to make, ascending.

    Where the tensor axis spans processes, several of them make the same.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_shards(mesh),))
    return tuple(sorted({place[0].start or 0 for place in places.values() if place is not None}))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How batches are laid out: split over their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def abstract_parameters(initialise: Callable[[jax.Array], Any], mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of parameters, computed without allocating any.

    Args:
      initialise: makes parameters, annotated with logical axes, from a key.
      mesh: the device mesh.

    Raises:
      UserError: the mesh does not divide a parameter.
    """
    boxed = jax.eval_shape(initialise, jax.random.key(0))
    return jax.tree.map(place, unbox(boxed), parameter_shardings(boxed, mesh))


def place(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """An abstract array like ``leaf``, with a sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def parameter_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings for parameters that flax annotated with logical axes.

    Args:
      boxed: tree of ``nn.LogicallyPartitioned`` abstract arrays; a bare leaf is replicated.
      mesh: the device mesh.

    Returns:
      The tree of unboxed leaves' shardings.

    Raises:
      UserError: no rule covers a logical axis, or the mesh does not divide a parameter, or divides
        the width among TPUs into less than a tile.
    """
    is_tpu = mesh.devices.flat[0].platform == "tpu"

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return replicated(mesh)
        name = parameter_name(path)
        axes: list[str | None] = []
        for size, logical in zip(leaf.value.shape, leaf.names, strict=True):
            if logical is not None and logical not in RULES:
                raise UserError(
                    f"parameter {name} has the logical axis {logical!r}, which no sharding rule "
                    "covers; add it to RULES in bert_jax/training/sharding.py"
                )
            axis = None if logical is None else RULES[logical]
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"mesh.{axis}={mesh.shape[axis]} does not divide the {logical} axis "
                    f"({size}) of parameter {name}; choose a divisor of {size}"
                )
            if is_tpu and axis == "fsdp" and 1 < mesh.shape[axis] > size // _TILE_ROWS:
                raise UserError(
                    f"mesh.fsdp={mesh.shape[axis]} leaves {size // mesh.shape[axis]} of the "
                    f"{logical} axis ({size}) of parameter {name} to a TPU, and below "
                    f"{_TILE_ROWS} its compiler moves more than a layer at a time; choose at most "
                    f"{size // _TILE_ROWS}, and mesh.data for the rest"
                )
            axes.append(axis)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(
        sharding_of, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )


def unbox(boxed: Any) -> Any:
    """Takes flax's axis names off, and nothing else: ``nn.meta.unbox`` would also constrain arrays,
    which abstract ones cannot be.
    """
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf,
        boxed,
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )


def parameter_name(path: tuple[Any, ...]) -> str:
    """A tree path as users read it: ``encoder/layers/attention/output/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes a global batch of the rows of ``process_shards``, which this process gives in order."""
    sharding = batch_sharding(mesh)
    shards = process_shards(mesh)

    def spread(array: np.ndarray) -> jax.Array:
        size = len(array) // len(shards)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # as JAX has it for what a process does not hold
            first = size * shards.index((index[0].start or 0) // size)
            return array[first : first + size]

        shape = (size * batch_shards(mesh), *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: spread(array) for name, array in batch.items()}
