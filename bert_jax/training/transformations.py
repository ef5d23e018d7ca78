"""The optax transformations that optimizers are chained from, where optax has no such.

A parameter is decayed or not by an explicit rule on its name, never by its rank: stacked layers
give biases two axes and more. A parameter that no rule covers is an error.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.errors import UserError

Array = jax.Array
PyTree = Any

# The last part of a parameter's path decides whether it is decayed. BERT excludes LayerNorm and
# biases (`exclude_from_weight_decay` in google-research/bert/optimization.py); tables are decayed.
# So are LoRA's matrices: it draws the adapted model to its base.
_DECAYED_NAMES = frozenset(
    {"kernel", "embedding", "word", "position", "segment", "lora_a", "lora_b"}
)
_UNDECAYED_NAMES = frozenset({"bias", "scale"})

# Axes along which one parameter holds several weight matrices, by a part of its path: LAMB's trust
# ratio is one number a matrix. The first is the stacked layers' axis, [layers, ...]; the fused
# projection is [layers, width, 3, heads, head_width].
_STACKED_LAYERS = "layers"
_FUSED_PROJECTION = "query_key_value"
_EMBEDDINGS = "embeddings"
_LORA_B = "lora_b"


def decay_mask(params: PyTree) -> PyTree:
    """Says of every parameter whether weight decay applies to it.

    Args:
      params: the parameters, with or without flax's metadata boxes.

    Returns:
      A tree of bool like `params`.

    Raises:
      UserError: a parameter's name is under neither rule.
    """

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = _names(path)
        if names[-1] in _DECAYED_NAMES:
            return True
        if names[-1] in _UNDECAYED_NAMES:
            return False
        raise UserError(
            f"No weight decay rule covers the parameter {'/'.join(names)!r}; name it one of "
            f"{', '.join(sorted(_DECAYED_NAMES))} (decayed) or "
            f"{', '.join(sorted(_UNDECAYED_NAMES))} (not decayed)."
        )

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def scale_by_uncorrected_adam(
    beta1: float, beta2: float, epsilon: float, mu_dtype: str | None = None
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv:1412.6980) without bias correction: m / (sqrt(v) + epsilon).

    The arguments and the state are those of `optax.scale_by_adam`, whose `mu_dtype` is the type
    that m is kept in.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            nu=optax.tree.zeros_like(params),
        )

    def update(
        updates: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, beta1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, beta2, 2)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        count = optax.safe_increment(state.count)
        mu = optax.tree.cast(mu, mu_dtype)
        return scaled, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def scale_by_matrix_trust_ratio() -> optax.GradientTransformation:
    """Scales each weight matrix's update by norm(parameter) / norm(update), as LAMB does.

    optax's transformation takes one norm a leaf, which would mix the layers of a stacked parameter
    and the query, key and value of a fused one; here each has its own. Where either norm is zero
    the ratio is 1, and parameters without weight decay are left alone.
    """

    def scale(path: tuple[Any, ...], update: Array, param: Array, decayed: bool) -> Array:
        if not decayed:
            return update
        axes = _matrix_axes(_names(path), param.ndim)
        param_norm = jnp.sqrt(jnp.sum(jnp.square(param), axes, keepdims=True))
        update_norm = jnp.sqrt(jnp.sum(jnp.square(update), axes, keepdims=True))
        usable = (param_norm > 0) & (update_norm > 0)
        return update * jnp.where(usable, param_norm / jnp.where(usable, update_norm, 1.0), 1.0)

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        if params is None:
            raise ValueError("the trust ratio needs the parameters")
        return jax.tree_util.tree_map_with_path(scale, updates, params, decay_mask(params))

    return optax.stateless(update)


def scale_by_layer_decay(decay: float) -> optax.GradientTransformation:
    """Scales updates by decay^(n - l) in layer l = 0..n-1 of n, and by decay^(n + 1) in embeddings.

    What stands on the encoder keeps its updates. In the optimizer's chain this multiplies the
    learning rate, that of weight decay included. It is the discriminative fine-tuning of Howard and
    Ruder (arXiv:1801.06146), as ELECTRA has it (`_get_layer_lrs` of
    google-research/electra/model/optimization.py), whose exponents are greater by one everywhere
    below the heads.

    Args:
      decay: the factor from one layer to the next below, in [0, 1].

    Raises:
      UserError: on `update`, when no stacked layers are trained, which would tell n.
    """

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        depths = {leaf.shape[0] for path, leaf in leaves if _STACKED_LAYERS in _names(path)}
        if len(depths) != 1:
            raise UserError(
                f"optimizer.layer_decay is {decay}, and no stacked layers are trained; set it to 1."
            )
        layers = depths.pop()

        def scale(path: tuple[Any, ...], update: Array) -> Array:
            names = _names(path)
            if _EMBEDDINGS in names:
                return update * decay ** (layers + 1)
            if _STACKED_LAYERS not in names:
                return update
            factors = decay ** np.arange(layers, 0, -1, dtype=np.float32)
            return update * factors.reshape(layers, *(1 for _ in update.shape[1:]))

        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(update)


def scale_lora_b(ratio: float) -> optax.GradientTransformation:
    """Scales the updates of LoRA's B, which starts at zero and has a long way to go.

    In the optimizer's chain this multiplies the learning rate, that of weight decay included. It is
    LoRA+ (Hayou et al., arXiv:2402.12354), whose authors find a ratio of some 16 best.

    Args:
      ratio: of B's learning rate to that of A and of what stands on the encoder.

    Raises:
      UserError: on `update`, when no LoRA is trained.
    """

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
        if not any(names[-1] == _LORA_B for names in paths):
            raise UserError(
                f"optimizer.lora_plus_ratio is {ratio}, and no LoRA is trained; set it to 1, or "
                "model.lora_rank to 8, say."
            )
        return jax.tree_util.tree_map_with_path(
            lambda path, update: update * ratio if _names(path)[-1] == _LORA_B else update, updates
        )

    return optax.stateless(update)


def _matrix_axes(names: tuple[str, ...], rank: int) -> tuple[int, ...]:
    """The axes of a kernel or table that its norm is taken over."""
    stacked = {0} if _STACKED_LAYERS in names else set()
    if _FUSED_PROJECTION in names:
        stacked.add(len(stacked) + 1)
    return tuple(axis for axis in range(rank) if axis not in stacked)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The dictionary keys of a tree path: flax's boxes add an attribute, which names nothing."""
    return tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
