"""How devices are arranged in a mesh, on several hosts and on a torus of chips, and what fits."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.training.sharding import MESH_AXES, make_mesh, parameter_shardings


@dataclasses.dataclass(frozen=True)
class Device:
    """What JAX tells of a device that matters to a mesh."""

    id: int
    slice_index: int = 0
    coords: tuple[int, ...] = ()
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"
    process_index: int = 0
    core_on_chip: int = 0
    client: None = None


def hosts_in(mesh):
    return [[[device.slice_index for device in row] for row in plane] for plane in mesh.devices]


@pytest.mark.parametrize(
    "shape, expected",
    [
        # The first axes are spread over hosts, for they send each other least.
        ((4, 1, 2), [[[0, 0]], [[0, 0]], [[1, 1]], [[1, 1]]]),
        ((2, 4, 1), [[[0]] * 4, [[1]] * 4]),
        ((1, 4, 2), [[[0, 0], [0, 0], [1, 1], [1, 1]]]),
        ((1, 1, 8), [[[0, 0, 0, 0, 1, 1, 1, 1]]]),
        ((-1, 1, 1), [[[0]]] * 4 + [[[1]]] * 4),
    ],
)
def test_hosts_hold_neighbours(shape, expected):
    devices = [Device(number, slice_index=number % 2) for number in range(8)]
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), shape, strict=True)), devices)
    assert hosts_in(mesh) == expected
    assert {device.id for device in mesh.devices.flat} == set(range(8))


def test_three_hosts():
    devices = [Device(number, slice_index=number // 4) for number in range(12)]
    mesh = make_mesh({"data": 2, "fsdp": 6, "tensor": 1}, devices)
    assert hosts_in(mesh) == [[[0], [0], [1], [1], [2], [2]]] * 2


def test_hosts_of_unequal_size():
    devices = [Device(number, slice_index=number // 8) for number in range(12)]
    with pytest.raises(UserError, match="12 devices of this run are on 2 hosts or slices of uneq"):
        make_mesh({"data": 12, "fsdp": 1, "tensor": 1}, devices)


def test_a_torus_whose_sides_a_mesh_does_not_divide():
    places = itertools.product(range(4), range(8), range(8))
    chips = [
        Device(number, coords=place, platform="tpu", device_kind="TPU v4")
        for number, place in enumerate(places)
    ]
    mesh = make_mesh({"data": 16, "fsdp": 16, "tensor": 1}, chips)
    assert {device.id for device in mesh.devices.flat} == set(range(256))


@pytest.mark.parametrize(
    "platform, fsdp, fits", [("tpu", 16, True), ("tpu", 32, False), ("gpu", 32, True)]
)
def test_fsdp_leaves_a_tile_to_each_tpu(platform, fsdp, fits):
    devices = [Device(number, platform=platform) for number in range(fsdp)]
    mesh = Mesh(np.reshape(devices, (1, fsdp, 1)), MESH_AXES)
    kernel = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((128, 512), "float32"), ("width", None))
    if fits:
        sharding = parameter_shardings({"kernel": kernel}, mesh)["kernel"]
        assert sharding.spec == PartitionSpec("fsdp", None)
    else:
        with pytest.raises(
            UserError, match=r"mesh.fsdp=32 leaves 4 of the width axis \(128\) .* choose at most 16"
        ):
            parameter_shardings({"kernel": kernel}, mesh)
