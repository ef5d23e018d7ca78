"""LoRA and adapters: few parameters that adapt a frozen encoder to a task or a person.

Both start as nothing: before the first update the adapted model computes what its base computes.
Their parameters stand beside those of the encoder, under `encoder/layers`:

    attention/{query,key,value,attention_output}_update/{lora_a, lora_b}
    feed_forward/feed_forward_{inner,output}_update/{lora_a, lora_b}
    {attention,feed_forward}_adapter/{down,up}/{kernel, bias}

Shapes: B batch, L length, D model width. `...` stands for any leading axes.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.layers import Projection, gelu, parameter

Array = jax.Array
PyTree = Any

ENCODER = "encoder"  # where every model keeps it
_LORA_NAMES = frozenset({"lora_a", "lora_b"})
_ADAPTER_NAMES = frozenset({"attention_adapter", "feed_forward_adapter"})

# The block and the projection that each of LoRA's targets adapts, and which part of it, where one
# kernel [layers, D, parts, ...] holds several.
_ADAPTED_PROJECTIONS: dict[str, tuple[str, str, int | None]] = {
    "query": ("attention", "query_key_value", 0),
    "key": ("attention", "query_key_value", 1),
    "value": ("attention", "query_key_value", 2),
    "attention_output": ("attention", "output", None),
    "feed_forward_inner": ("feed_forward", "inner", None),
    "feed_forward_output": ("feed_forward", "output", None),
}


class LowRankUpdate(nn.Module):
    """LoRA's (x A) B * scale (Hu et al., arXiv:2106.09685), to be added to a projection's output.

    As in the authors' code A starts uniform within 1 / sqrt(inputs), and B at zero.

    Attributes:
      shape: of the kernel that is adapted, contracted axes first.
      axes: the logical name of each of its axes.
      rank: of the update.
      scale: alpha / rank.
      dtype: in which the products are computed. Parameters are float32.
      contracted: how many leading axes of the kernel are contracted.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    rank: int
    scale: float
    dtype: jnp.dtype
    contracted: int = 1

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [..., *shape[:contracted]] to [..., *shape[contracted:]] in `dtype`."""
        inner, outer = slice(self.contracted), slice(self.contracted, None)
        uniform = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=tuple(range(self.contracted))
        )
        zeros = nn.initializers.zeros_init()
        a_shape, b_shape = (*self.shape[inner], self.rank), (self.rank, *self.shape[outer])
        a = parameter(self, "lora_a", uniform, a_shape, (*self.axes[inner], None))
        b = parameter(self, "lora_b", zeros, b_shape, (None, *self.axes[outer]))
        narrow = jnp.tensordot(
            inputs.astype(self.dtype), a.astype(self.dtype), axes=self.contracted
        )
        return jnp.tensordot(narrow, (self.scale * b).astype(self.dtype), axes=1)


def add_low_rank_update(
    config: BertConfig,
    target: str,
    inputs: Array,
    outputs: Array,
    axes: tuple[str, ...],
    contracted: int = 1,
) -> Array:
    """Adds a target's `LowRankUpdate` to a projection's outputs, if the config asks for one.

    To be called in a compact module, which gets the update as its submodule.

    Args:
      config: of the encoder.
      target: a name in `LORA_TARGETS`.
      inputs: of the projection.
      outputs: of the projection.
      axes: the logical name of each axis of the projection's kernel.
      contracted: how many of the inputs' last axes the kernel contracts.
    """
    if not config.lora_rank or target not in config.lora_targets:
        return outputs
    update = LowRankUpdate(
        shape=(*inputs.shape[-contracted:], *outputs.shape[contracted - len(axes) :]),
        axes=axes,
        rank=config.lora_rank,
        scale=config.lora_alpha / config.lora_rank,
        dtype=outputs.dtype,
        contracted=contracted,
        name=_update_name(target),
    )
    return outputs + update(inputs)


def _update_name(target: str) -> str:
    return f"{target}_update"


class Adapter(nn.Module):
    """A bottleneck with a skip connection (Houlsby et al., arXiv:1902.00751).

    It stands where google-research/adapter-bert has it: on a block's output after dropout, before
    the residual sum. There both kernels start from a narrow normal; here the second starts at zero
    so that the adapter is the identity exactly, and the first as the encoder's kernels do.
    """

    config: BertConfig

    @nn.compact
    def __call__(self, update_BLD: Array) -> Array:
        """Maps [B, L, D] to [B, L, D]."""
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        narrow = Projection(
            shape=(config.width, config.adapter_width),
            axes=("width", None),
            stddev=config.initializer_stddev,
            dtype=dtype,
            name="down",
        )(update_BLD)
        return update_BLD + Projection(
            shape=(config.adapter_width, config.width),
            axes=(None, "width"),
            stddev=0.0,
            dtype=dtype,
            name="up",
        )(gelu(narrow))


def added_by_adaptation(path: tuple[str, ...]) -> bool:
    """Whether a parameter is LoRA's or an adapter's, by its path in a model's tree."""
    return path[-1] in _LORA_NAMES or not _ADAPTER_NAMES.isdisjoint(path)


def adaptation_paths(paths: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Which of the encoder's parameters are trained when it is adapted.

    LoRA's and the adapters' own; and where there are adapters every LayerNorm of the encoder too,
    as their paper has it. Empty for a model without adaptation.

    Args:
      paths: of a model's parameters, from the root of its tree.
    """
    inside = [path for path in paths if path[0] == ENCODER]
    trained = {path for path in inside if added_by_adaptation(path)}
    if any(path[-1] not in _LORA_NAMES for path in trained):
        trained |= {path for path in inside if path[-2].endswith("norm")}
    return trained


def adaptation_params(params: PyTree) -> PyTree:
    """The encoder's parameters that are trained when it is adapted (see `adaptation_paths`)."""
    flat = flatten_dict(params)
    return unflatten_dict({path: flat[path] for path in adaptation_paths(flat)})


def base_params(params: PyTree) -> PyTree:
    """The encoder's parameters without those that LoRA and adapters add to its tree."""
    flat = flatten_dict({ENCODER: params[ENCODER]})
    base = {path: leaf for path, leaf in flat.items() if not added_by_adaptation(path)}
    return unflatten_dict(base)


def merge_lora(params: PyTree, config: BertConfig) -> tuple[PyTree, BertConfig]:
    """Folds LoRA's updates into the kernels, so that the model is a plain one of the same outputs.

    The sums are made on the host in float64 and rounded once, to float32.

    Args:
      params: of a model whose encoder has LoRA's parameters.
      config: of that encoder.

    Returns:
      Parameters of the plain model, and its config, with LoRA's fields back at their defaults.

    Raises:
      UserError: the encoder has adapters, or no LoRA.
    """
    if config.adapter_width:
        raise UserError(
            f"adapters (adapter_width {config.adapter_width}) cannot be merged into the encoder, "
            "because they are not linear; keep them as a file beside the base model"
        )
    if not config.lora_rank:
        raise UserError("the model has no LoRA to merge (lora_rank is 0); use it as it is")
    flat = dict(flatten_dict(params))
    for target in config.lora_targets:
        block, projection, part = _ADAPTED_PROJECTIONS[target]
        stem = (ENCODER, "layers", block)
        a, b = (
            np.asarray(flat.pop((*stem, _update_name(target), name)), np.float64)
            for name in ("lora_a", "lora_b")
        )
        path = (*stem, projection, "kernel")
        original = flat[path]
        kernel = np.array(original, np.float64)
        adapted = kernel if part is None else kernel[:, :, part]
        layers, rank = b.shape[:2]
        product = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
        adapted += config.lora_alpha / rank * product.reshape(adapted.shape)
        flat[path] = _like(kernel, original)
    plain = dataclasses.replace(
        config,
        lora_rank=0,
        lora_alpha=BertConfig.lora_alpha,
        lora_targets=BertConfig.lora_targets,
    )
    return unflatten_dict(flat), plain


def _like(merged: np.ndarray, original: Any) -> Any:
    """The merged array in the original's type, on its devices if it is on any."""
    rounded = merged.astype(original.dtype)
    return jax.device_put(rounded, original.sharding) if isinstance(original, Array) else rounded
