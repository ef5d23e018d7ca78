"""The look-up of tokens: on eight virtual CPU devices, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

VOCABULARY, WIDTH, BATCH, LENGTH = 96, 32, 16, 12
FLOAT = 4
# The value and the gradient of a look-up on each mesh, next to those of plain indexing, and what
# the compiled program exchanges.
PROGRAM = f"""
import json, sys
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from bert_jax.models.word_lookup import look_up
from bert_jax.training.collectives import find_collectives
from bert_jax.training.sharding import ACTIVATION_RULES, batch_sharding, make_mesh

keys = jax.random.split(jax.random.key(0), 3)
table = jax.random.normal(keys[0], ({VOCABULARY}, {WIDTH}))
token_ids = jax.random.randint(keys[1], ({BATCH}, {LENGTH}), 0, {VOCABULARY})
weights = jax.random.normal(keys[2], ({BATCH}, {LENGTH}, {WIDTH}))

def indexed(table, token_ids, weights):
    return (table[token_ids] * weights).sum(), table[token_ids]

(_, hidden), gradient = jax.value_and_grad(indexed, has_aux=True)(table, token_ids, weights)
results = []
for mesh, most in json.loads(sys.argv[1]):
    def looked_up(table, token_ids, weights):
        found = look_up(table, token_ids, most)
        return (found * weights).sum(), found

    mesh = make_mesh(mesh)
    places = NamedSharding(mesh, P("tensor", "fsdp")), batch_sharding(mesh), batch_sharding(mesh)
    arguments = tuple(map(jax.device_put, (table, token_ids, weights), places))
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
        function = jax.jit(jax.value_and_grad(looked_up, has_aux=True), in_shardings=places)
        compiled = function.lower(*arguments).compile()
    got = compiled(*arguments)
    results.append({{
        "differences": [
            float(abs(np.asarray(got[1]) - np.asarray(gradient)).max()),
            float(abs(np.asarray(got[0][1]) - np.asarray(hidden)).max()),
        ],
        "exchanges": [
            (found.count, found.bytes)
            for found in find_collectives(compiled.as_text()) if found.kind == "all-to-all"
        ],
    }})
print(json.dumps(results))
"""
FSDP = {"data": 1, "fsdp": 8, "tensor": 1}
WHOLE = BATCH * LENGTH * WIDTH // 8  # numbers of a device's hidden states


@pytest.fixture(scope="module")
def results():
    """What the program tells of (mesh, most)."""
    mixed = {"data": 2, "fsdp": 2, "tensor": 2}
    cases = {
        "at once": (FSDP, WHOLE),
        "in halves": (FSDP, WHOLE - 1),
        # Twelve positions do not divide into five.
        "in sixths": (FSDP, WHOLE // 5),
        "one by one": (FSDP, 1),
        "a mixed mesh in thirds": (mixed, 2 * WHOLE // 3),
        "no fsdp": ({"data": 8, "fsdp": 1, "tensor": 1}, 1),
    }
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(cases.values()))],
        env=dict(os.environ) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return dict(zip(cases, json.loads(finished.stdout), strict=True))


@pytest.mark.parametrize(
    "case, parts",
    [("at once", 1), ("in halves", 2), ("in sixths", 6), ("one by one", LENGTH), ("no fsdp", 0)],
)
def test_what_is_exchanged(results, case, parts):
    """Forward and backward, each part apart."""
    exchanges = [[parts, WHOLE * FLOAT // parts]] * 2 if parts else []
    assert results[case]["exchanges"] == exchanges


def test_values_and_gradients(results):
    for case, result in results.items():
        of_gradients, of_values = result["differences"]
        assert of_values == 0, case
        assert of_gradients < 1e-5, case  # sums in another order
