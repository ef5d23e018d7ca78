"""How kernels are found, also in a JAX without the parts that they are written with."""

import subprocess
import sys

import pytest

from bert_jax.models.attention import implementation
from bert_jax.models.config import ATTENTIONS

PROGRAM = """
import sys
sys.modules |= {"jax.experimental.pallas." + part: None for part in ("ops", "triton")}
import dataclasses
import jax, jax.numpy as jnp
import bert_jax.train
from bert_jax.errors import UserError
from bert_jax.models.encoder import Encoder
from bert_jax.models.config import sized_config

plain = sized_config("L2_H64", 100, compute_dtype="bfloat16", attention_dropout=0.0)
ids = jnp.zeros((2, 8), jnp.int32)
fields = {"attention": "splash"}, {"attention": "triton"}, {"residual_norm": "triton"}
for settings in ({}, *fields, {"gelu": "triton"}):
    encoder = Encoder(dataclasses.replace(plain, **settings))
    try:
        jax.eval_shape(
            lambda key: encoder.init(key, ids, ids, jnp.array([8, 8]), deterministic=True),
            jax.random.key(0),
        )
        print("computed")
    except UserError as error:
        print(error)
"""


def test_only_what_asks_for_a_kernel_needs_what_it_is_written_with() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, *told = done.stdout.splitlines()
    assert plain == "computed"
    modules = ("fused_attention", "triton_attention", "triton_norm", "triton_gelu")
    for line, module in zip(told, modules, strict=True):
        assert f"the kernels of bert_jax/models/{module}.py do not work with jax" in line
        assert "set model.attention, model.residual_norm, model.gelu to 'xla'" in line


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_has_an_implementation(name: str) -> None:
    assert callable(implementation(name))
