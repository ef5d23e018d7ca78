"""Optimizers and learning-rate schedules of BERT pretraining, as optax transformations.

A parameter is decayed or not by an explicit rule on its name, never by its rank: stacked layers
give biases two axes and more. A parameter that no rule covers is an error.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.errors import UserError

Array = jax.Array
PyTree = Any

# The last part of a parameter's path decides whether it is decayed. BERT excludes LayerNorm and
# biases (`exclude_from_weight_decay` in google-research/bert/optimization.py); tables are decayed.
_DECAYED_NAMES = frozenset({"kernel", "embedding", "word", "position", "segment"})
_UNDECAYED_NAMES = frozenset({"bias", "scale"})

# Axes along which one parameter holds several weight matrices, by a part of its path: LAMB's trust
# ratio is one number a matrix. The first is the stacked layers' axis, [layers, ...]; the fused
# projection is [layers, width, 3, heads, head_width].
_STACKED_LAYERS = "layers"
_FUSED_PROJECTION = "query_key_value"

NAMES = ("adamw", "lamb", "adafactor")
SCHEDULES = ("linear", "cosine", "warmup_stable_decay")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What to optimise with.

    Attributes:
      name: "adamw", "lamb" or "adafactor".
      learning_rate: the schedule's peak. Adafactor's is relative to each parameter's size, so that
        1e-2 is usual where AdamW has 1e-4.
      schedule: what follows the linear warm-up from zero. "linear" and "cosine" decay to the last
        step; "warmup_stable_decay" stays at the peak and decays linearly over the last
        `decay_share` of all steps.
      warmup_steps: steps of warm-up, or None to use `warmup_share`.
      warmup_share: warm-up as a share of all steps.
      decay_share: of all steps, for "warmup_stable_decay".
      final_learning_rate_share: where the decay ends, as a share of the peak.
      weight_decay: decoupled: each step takes learning rate * weight_decay of the parameter, as in
        BERT. LayerNorm and biases are not decayed.
      beta1: decay of the first moment (AdamW, LAMB).
      beta2: decay of the second moment (AdamW, LAMB). Adafactor has no first moment and a second
        moment of its own schedule, and reads neither.
      epsilon: added to the root of the second moment (AdamW, LAMB).
      bias_correction: divide AdamW's moments by 1 - beta^step. BERT's optimizer did not, so that is
        the default; the warm-up covers the steps where it matters. LAMB always corrects, as its
        paper does.
      clip_norm: largest global norm of the gradient; 0 for no clipping.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    schedule: str = "linear"
    warmup_steps: int | None = None
    warmup_share: float = 0.01
    decay_share: float = 0.1
    final_learning_rate_share: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    bias_correction: bool = False
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("optimizer name", self.name, NAMES)
        _check_choice("optimizer schedule", self.schedule, SCHEDULES)
        ranges = {
            "learning_rate": (0.0, math.inf),
            "warmup_share": (0.0, 1.0),
            "decay_share": (0.0, 1.0),
            "final_learning_rate_share": (0.0, 1.0),
            "weight_decay": (0.0, math.inf),
            "beta1": (0.0, 1.0),
            "beta2": (0.0, 1.0),
            "epsilon": (0.0, math.inf),
            "clip_norm": (0.0, math.inf),
        }
        for key, (low, high) in ranges.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise UserError(f"Optimizer {key} is {value}; give a number from {low} to {high}.")

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "OptimizerConfig":
        """Builds the config from keys and values, such as an `ml_collections.ConfigDict`.

        Raises:
          UserError: a key is unknown, or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in config:
            _check_choice("optimizer key", key, known)
        return cls(**{key: config[key] for key in config})


def make_optimizer(
    config: OptimizerConfig | Mapping[str, Any], total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Makes the optimizer and its learning-rate schedule.

    AdamW follows `AdamWeightDecayOptimizer` of google-research/bert (Loshchilov and Hutter,
    arXiv:1711.05101, without bias correction unless asked for); LAMB is You et al.,
    arXiv:1904.00962, with the trust ratio taken per weight matrix of each layer, and only for
    decayed parameters, as its authors' code does; Adafactor is Shazeer and Stern, arXiv:1804.04235,
    with its clipping and scale taken over a parameter of all layers at once.

    Args:
      config: an `OptimizerConfig`, or a mapping with its keys.
      total_steps: optimizer steps of the whole run.

    Returns:
      The gradient transformation, whose updates are added to the parameters, and the schedule, step
      number to learning rate. `init` and `update` need the parameters and raise UserError for one
      that no decay rule covers.

    Raises:
      UserError: a key, name or value cannot be used, or the schedule's parts do not fit into
        `total_steps`.
    """
    if not isinstance(config, OptimizerConfig):
        config = OptimizerConfig.from_mapping(config)
    schedule = make_schedule(config, total_steps)
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    if config.name == "adamw":
        if config.bias_correction:
            parts.append(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))
        else:
            parts.append(scale_by_uncorrected_adam(config.beta1, config.beta2, config.epsilon))
        parts.append(decay)
    elif config.name == "lamb":
        parts += [
            optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
            decay,
            scale_by_matrix_trust_ratio(),
        ]
    else:
        parts += [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
            decay,
        ]
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule)), schedule


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate by step: linear warm-up from zero, then the decay that the config names.

    The decay starts where the warm-up ends (in google-research/bert the linear decay counts from
    step 0, and the rate drops by the warm-up's share where the two meet). Past `total_steps` the
    rate stays at its final value.

    Raises:
      UserError: `total_steps` is not positive, or warm-up and decay do not fit into it.
    """
    if total_steps < 1:
        raise UserError(f"total_steps is {total_steps}; give at least 1.")
    peak = config.learning_rate
    final = peak * config.final_learning_rate_share
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(config.warmup_share * total_steps)
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(
            f"Optimizer warmup_steps is {warmup_steps}, which does not fit into the run's "
            f"{total_steps} steps; lower warmup_steps or raise total_steps."
        )
    decay_steps = total_steps - warmup_steps
    if config.schedule == "warmup_stable_decay":
        stable_steps = decay_steps - round(config.decay_share * total_steps)
        if stable_steps < 0:
            raise UserError(
                f"Optimizer warm-up ({warmup_steps} steps) and decay_share {config.decay_share} "
                f"take more than the run's {total_steps} steps; lower one of them."
            )
        decay_steps -= stable_steps
    # The schedules with no steps are never reached, but optax complains about them.
    warmup = optax.linear_schedule(0.0, peak, max(1, warmup_steps))
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(
            peak, max(1, decay_steps), alpha=config.final_learning_rate_share
        )
    else:
        decay = optax.linear_schedule(peak, final, max(1, decay_steps))
    if config.schedule == "warmup_stable_decay":
        return optax.join_schedules(
            [warmup, optax.constant_schedule(peak), decay],
            [warmup_steps, warmup_steps + stable_steps],
        )
    return optax.join_schedules([warmup, decay], [warmup_steps])


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
    beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv:1412.6980) without bias correction: m / (sqrt(v) + epsilon).

    The state is optax's `ScaleByAdamState`.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params),
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


def _matrix_axes(names: tuple[str, ...], rank: int) -> tuple[int, ...]:
    """The axes of a kernel or table that its norm is taken over."""
    stacked = {0} if _STACKED_LAYERS in names else set()
    if _FUSED_PROJECTION in names:
        stacked.add(len(stacked) + 1)
    return tuple(axis for axis in range(rank) if axis not in stacked)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The dictionary keys of a tree path: flax's boxes add an attribute, which names nothing."""
    return tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))


def _check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
        raise UserError(
            f"Unknown {what} {value!r} (did you mean {nearest!r}?); choose one of "
            f"{', '.join(choices)}."
        )
