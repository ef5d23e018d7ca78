"""Collectives of real programs, compiled for eight virtual CPU devices in their own process."""

import json
import os
import subprocess
import sys

import pytest

from bert_jax.training.collectives import Collective, Total, find_collectives, total_by_kind

WIDTH, LAYERS = 64, 5
FLOAT = 4
# Five layers under `scan`, their kernels split over all devices and the rows too, as under FSDP;
# then one collective of each other kind.
PROGRAM = f"""
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

def abstract(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

def layer(hidden, kernel):
    whole = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, P()))
    return jnp.tanh(hidden @ whole), None

def scanned(hidden, kernels):
    return jax.lax.scan(layer, hidden, kernels)[0].sum()

def text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()

def mapped(function):
    return jax.shard_map(function, mesh=mesh, in_specs=P("d"), out_specs=P("d"))

rows = abstract((64, {WIDTH}), "d")
ring = [(i, (i + 1) % 8) for i in range(8)]
print(json.dumps({{
    "scan": text(scanned, rows, abstract(({LAYERS}, {WIDTH}, {WIDTH}), None, "d")),
    "reduce-scatter": text(mapped(lambda x: jax.lax.psum_scatter(x, "d", tiled=True)), rows),
    "all-to-all": text(mapped(lambda x: jax.lax.all_to_all(x, "d", 1, 0, tiled=True)), rows),
    "collective-permute": text(mapped(lambda x: jax.lax.ppermute(x, "d", ring)), rows),
    "none": text(lambda x: x + 1, rows),
}}))
"""


@pytest.fixture(scope="module")
def hlo():
    environment = dict(os.environ) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", PROGRAM]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_a_collective_in_a_loop_counts_each_time(hlo):
    totals = total_by_kind(find_collectives(hlo["scan"]))
    kernel = WIDTH * WIDTH * FLOAT
    assert totals == {"all-gather": Total(LAYERS, LAYERS * kernel), "all-reduce": Total(1, FLOAT)}


@pytest.mark.parametrize("kind", ["reduce-scatter", "all-to-all", "collective-permute"])
def test_each_kind_is_found_with_what_goes_in(hlo, kind):
    (found,) = find_collectives(hlo[kind])
    assert (found.kind, found.count) == (kind, 1)
    assert found.bytes == 8 * WIDTH * FLOAT  # a device's rows


def test_a_program_without_any(hlo):
    assert find_collectives(hlo["none"]) == []
    assert total_by_kind([]) == {}


def test_what_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        find_collectives("nothing")


def test_forms_of_other_compilers():
    """Asynchronous ones, in lines as the compilers for GPUs and TPUs write them."""
    found = find_collectives(ASYNCHRONOUS)
    assert found == [
        Collective("all-gather", 8 * 256 * 2, 1, "jit(step)/gather"),
        Collective("all-reduce", (100 + 2) * 4, 3, ""),
        Collective("reduce-scatter", 64 * 4, 3, ""),
    ]


# `ag` starts before a loop that helps it along, and must count once.
ASYNCHRONOUS = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%start (p: bf16[1,256]) -> (bf16[1,256], bf16[8,256]) {
  %p = bf16[1,256]{1,0:T(4,128)(2,1)} parameter(0)
  %ag = bf16[8,256]{1,0:T(4,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}, metadata={op_name="jit(step)/gather"}
  ROOT %started = (bf16[1,256], bf16[8,256]) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%helped (p.1: bf16[1,256]) -> bf16[8,256] {
  %p.1 = bf16[1,256]{1,0} parameter(0)
  ROOT %ag.1 = bf16[8,256]{1,0} all-gather(%p.1), channel_id=7, dimensions={0}
}

%all-reduce-scatter.1 (p.2: f32[64]) -> f32[8] {
  %p.2 = f32[64]{0:T(128)} parameter(0)
  %whole = f32[64]{0:T(128)} all-reduce(%p.2), channel_id=9, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %mine = f32[8]{0} dynamic-slice(%whole, %zero), dynamic_slice_sizes={8}
}

%condition (c: (s32[], f32[100])) -> pred[] {
  %c = (s32[], f32[100]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %bound = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (d: (s32[], f32[100], f32[2], bf16[1,256], f32[64])) -> (s32[], f32[100]) {
  %d = (s32[], f32[100]{0:T(128)S(1)}, f32[2]) parameter(0)
  %x = f32[100]{0:T(128)S(1)} get-tuple-element(%d), index=1
  %y = f32[2]{0} get-tuple-element(%d), index=2
  %z = bf16[1,256]{1,0} get-tuple-element(%d), index=3
  %w = f32[64]{0} get-tuple-element(%d), index=4
  %r = (f32[100]{0:T(128)S(1)}, /*index=1*/f32[2]{0}) all-reduce-start(%x, %y), channel_id=8, to_apply=%sum
  %r.done = (f32[100]{0}, f32[2]{0}) all-reduce-done(%r)
  %help = bf16[8,256]{1,0} fusion(%z), kind=kCustom, calls=%helped
  %scattered = f32[8]{0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = (s32[], f32[100]) tuple(%i, %x)
}

ENTRY %main (e: bf16[1,256]) -> f32[] {
  %e = bf16[1,256]{1,0} parameter(0)
  %f = (bf16[1,256], bf16[8,256]) fusion(%e), kind=kCustom, calls=%start
  %t = (s32[], f32[100]) while(%f), condition=%condition, body=%body
  ROOT %last = f32[] constant(0)
}
"""  # noqa: E501
