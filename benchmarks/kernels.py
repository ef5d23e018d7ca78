"""Times the kernels of a GPU apart from the model, next to XLA's programs of the same.

    python benchmarks/kernels.py base:128:256 large:512:32
    python benchmarks/kernels.py --only norm --set triton_norm._BACKWARD_ELEMENTS=1024

One layer's attention and one end of a block (bias, dropout, residual sum, LayerNorm), which drop a
tenth unless it says otherwise, and one GELU with the bias before it; in bfloat16, forward and
backward, in microseconds: the fastest of some turns. `memory` is what it takes to read
and write once what must be, at the speed that the device copies. `--set` gives a constant of a
kernel's module another value, to find out which suits a device. Without a GPU the kernels are
interpreted: that shows that this program works, and nothing else.
"""

import argparse
import functools
import importlib
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from results import add_results_argument, keep
from train_step import Shape, shape

from bert_jax.command_line import run
from bert_jax.models.attention import dot_product_attention
from bert_jax.models.config import size_shape
from bert_jax.models.fused_attention import cudnn_attention
from bert_jax.models.layers import dropout, gelu, layer_norm
from bert_jax.models.triton_attention import triton_attention
from bert_jax.models.triton_gelu import biased_gelu
from bert_jax.models.triton_norm import residual_norm

OURS = "triton"
_DROPOUT = 0.1
_EPSILON = 1e-12
# Calls of a compiled program, so that the device is measured and not how fast it is asked; and of
# them in a turn.
_CALLS, _PROGRAMS, _TURNS = 8, 3, 5


class Contestant(NamedTuple):
    """What is timed: a function of a key for dropout and arrays, and the arrays."""

    name: str
    function: Callable[..., jax.Array]
    inputs: tuple[jax.Array, ...]


class Kind(NamedTuple):
    """A kind of kernel.

    Attributes:
      title: what it computes.
      contestants: makes them, of a size's numbers, a length and a batch size.
      moved: how many arrays of the hidden states' size are read and written, forward and backward.
    """

    title: str
    contestants: Callable[[dict[str, int], int, int], Iterator[Contestant]]
    moved: tuple[int, int]


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "shapes", nargs="*", type=shape, default=[shape("base:128:256")], help="SIZE:LENGTH:BATCH"
    )
    parser.add_argument("--only", choices=KINDS, help="one kind of kernel (default: all)")
    parser.add_argument(
        "--set",
        dest="constants",
        action="append",
        type=constant,
        default=[],
        metavar="MODULE.NAME=NUMBER",
        help="another value for a constant of a module of bert_jax/models",
    )
    add_results_argument(parser)
    arguments = parser.parse_args()
    for module, name, value in arguments.constants:
        setattr(module, name, value)
    speed = copied_bytes_per_second()
    print(f"{jax.devices()[0].device_kind}, which copies {speed / 1e12:.2f} TB/s")
    for each in arguments.shapes:
        others = {other.text for other in arguments.shapes} - {each.text}
        for kind in KINDS if arguments.only is None else (arguments.only,):
            measure(KINDS[kind], each, speed, arguments.results, others)


def constant(text: str) -> tuple[Any, str, int]:
    """Reads `MODULE.NAME=NUMBER`."""
    place, _, value = text.partition("=")
    path, _, name = place.rpartition(".")
    try:
        module = importlib.import_module(f"bert_jax.models.{path}")
        if not isinstance(getattr(module, name), int):
            raise AttributeError
        return module, name, int(value)
    except (ImportError, AttributeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text} is not MODULE.NAME=NUMBER of a whole number in bert_jax/models, such as "
            "triton_norm._BACKWARD_ELEMENTS=1024"
        ) from None


def measure(
    kind: Kind, shape: Shape, speed: float, results: Path | None, others: Collection[str]
) -> None:
    """Prints the table of a kind of kernel for a shape, and keeps it."""
    title = (
        f"{kind.title}, BERT-{shape.size}, length {shape.length}, batch {shape.batch_size}, "
        "bfloat16"
    )
    sizes = size_shape(shape.size)
    hidden_bytes = 2 * shape.batch_size * shape.length * sizes["width"]
    rows = {"memory": tuple(arrays * hidden_bytes / speed for arrays in kind.moved)}
    for contestant in kind.contestants(sizes, shape.length, shape.batch_size):
        rows[contestant.name] = seconds(contestant.function, contestant.inputs)
    print(f"{title}\n  {'':20} {'forward us':>11} {'backward us':>12}")
    for name, (forward, backward) in rows.items():
        print(f"  {name:20} {1e6 * forward:11.0f} {1e6 * backward:12.0f}", flush=True)
    forward, backward = rows[OURS]
    figure = f"{OURS}: {1e6 * forward:.0f} us forward, {1e6 * backward:.0f} backward"
    keep(results, title, figure, rows, {}, others)


def attentions(shape: dict[str, int], length: int, batch: int) -> Iterator[Contestant]:
    """Attention from the three projections and their biases, with some padding."""
    heads, width = shape["heads"], shape["width"] // shape["heads"]
    lengths = jnp.asarray(np.random.default_rng(0).integers(length // 2, length + 1, batch))
    projected = normal(0, (batch, length, 3, heads, width), jnp.bfloat16)
    bias = normal(1, (3, heads, width), jnp.float32)
    # As the model has them for all but triton, with those biases that it adds before attention.
    parts = (*jnp.unstack(projected, axis=2), bias[0], bias[2])

    def drop(key: jax.Array) -> dict[str, Any]:
        return {"dropout_rate": _DROPOUT, "dropout_key": key}

    def add(part: jax.Array, bias: jax.Array) -> jax.Array:
        return (part.astype(jnp.float32) + bias).astype(part.dtype)

    def xla(
        key: jax.Array, query: Any, keys: Any, value: Any, query_bias: Any, value_bias: Any
    ) -> jax.Array:
        arrays = add(query, query_bias), keys, add(value, value_bias)
        return dot_product_attention(*arrays, lengths, **drop(key))

    def cudnn(key: jax.Array, query: Any, keys: Any, value: Any, query_bias: Any) -> jax.Array:
        return cudnn_attention(add(query, query_bias), keys, value, lengths)

    def triton(drops: bool, key: jax.Array, projected: jax.Array, bias: jax.Array) -> jax.Array:
        settings = drop(key) if drops else {}
        interpret = not is_gpu()
        return triton_attention(projected, bias, lengths=lengths, interpret=interpret, **settings)

    yield Contestant("xla", xla, parts)
    if is_gpu():
        yield Contestant("cudnn, no dropout", cudnn, parts[:4])
    for name, drops in ((OURS, True), ("triton, no dropout", False)):
        yield Contestant(name, functools.partial(triton, drops), (projected, bias))


def norms(shape: dict[str, int], length: int, batch: int) -> Iterator[Contestant]:
    """The end of a block."""
    width = shape["width"]
    hidden = tuple(normal(n, (batch, length, width), jnp.bfloat16) for n in range(2))
    vectors = tuple(normal(2 + n, (width,), jnp.float32) for n in range(3))

    def xla(
        key: jax.Array, residual: Any, update: Any, update_bias: Any, scale: Any, bias: Any
    ) -> jax.Array:
        update = (update.astype(jnp.float32) + update_bias).astype(update.dtype)
        normed = layer_norm(residual + dropout(update, _DROPOUT, key), scale, bias, _EPSILON)
        return normed.astype(residual.dtype)

    def triton(
        key: jax.Array, residual: Any, update: Any, update_bias: Any, scale: Any, bias: Any
    ) -> jax.Array:
        return residual_norm(
            residual,
            scale,
            bias,
            _EPSILON,
            update_BLD=update,
            update_bias_D=update_bias,
            dropout_rate=_DROPOUT,
            dropout_key=key,
            interpret=not is_gpu(),
        )

    yield Contestant("xla", xla, (*hidden, *vectors))
    yield Contestant(OURS, triton, (*hidden, *vectors))


def gelus(shape: dict[str, int], length: int, batch: int) -> Iterator[Contestant]:
    """A feed-forward block's GELU."""
    width = shape["feed_forward_width"]
    inputs = normal(0, (batch, length, width), jnp.bfloat16), normal(1, (width,), jnp.float32)

    def xla(key: jax.Array, projected: jax.Array, bias: jax.Array) -> jax.Array:
        return gelu((projected.astype(jnp.float32) + bias).astype(projected.dtype))

    def triton(key: jax.Array, projected: jax.Array, bias: jax.Array) -> jax.Array:
        return biased_gelu(projected, bias, interpret=not is_gpu())

    yield Contestant("xla", xla, inputs)
    yield Contestant(OURS, triton, inputs)


KINDS = {
    # Three projections and the context; and then also their gradients.
    "attention": Kind("attention of a layer", attentions, (4, 8)),
    # Two summands, their sum and its norm; and as many gradients.
    "norm": Kind("end of a block", norms, (4, 4)),
    # Of four times the width: the projection and its GELU; the projection and the two's gradients.
    "gelu": Kind("bias and GELU", gelus, (8, 12)),
}


def is_gpu() -> bool:
    """Whether there is one to run the kernels on."""
    return jax.default_backend() == "gpu"


def normal(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Random numbers."""
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def seconds(
    function: Callable[..., jax.Array], inputs: tuple[jax.Array, ...]
) -> tuple[float, float]:
    """What a call takes, and what the gradients of all inputs take on top."""

    def both(key: jax.Array, gradient: jax.Array, *inputs: jax.Array) -> Any:
        outputs, differentiate = jax.vjp(functools.partial(function, key), *inputs)
        return outputs, differentiate(gradient)

    gradient = jax.jit(function)(jax.random.key(0), *inputs)
    forward = fastest(function, *inputs)
    return forward, fastest(both, gradient, *inputs) - forward


def fastest(function: Callable[..., Any], *inputs: jax.Array) -> float:
    """Seconds of a call, of many one after the other, in the fastest of some turns."""
    calls, programs = (_CALLS, _PROGRAMS) if is_gpu() else (1, 1)
    # Each call has inputs and a key of its own, or the compiler would make one of them.
    keys = list(jax.random.split(jax.random.key(0), calls))
    copies = [[array.copy() for array in inputs] for _ in range(calls)]
    many = jax.jit(
        lambda keys, copies: [function(key, *each) for key, each in zip(keys, copies, strict=True)]
    )
    jax.block_until_ready(many(keys, copies))
    times = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        for _ in range(programs):
            outputs = many(keys, copies)
        jax.block_until_ready(outputs)
        times.append((time.perf_counter() - start) / (calls * programs))
    return min(times)


def copied_bytes_per_second() -> float:
    """How fast the device reads and writes memory at once."""
    source = jnp.ones((2**28 if is_gpu() else 2**20,), jnp.float32)
    return 2 * source.nbytes / fastest(lambda _, array: array + 1, source)


if __name__ == "__main__":
    run(main)
