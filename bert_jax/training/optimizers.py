"""Optimizers and learning-rate schedules of BERT, by name, as chains of optax transformations."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import optax

from bert_jax.errors import UserError
from bert_jax.training.transformations import (
    decay_mask,
    scale_by_layer_decay,
    scale_by_matrix_trust_ratio,
    scale_by_uncorrected_adam,
    scale_lora_b,
)

NAMES = ("adamw", "lamb", "adafactor")
SCHEDULES = ("linear", "cosine", "warmup_stable_decay")
MOMENT_TYPES = ("float32", "bfloat16")


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
      first_moment_dtype: "float32", or "bfloat16" to keep the first moment of AdamW and LAMB in
        half the bytes. The second stays float32: with beta2 at 0.999 its decay is too small a
        change for bfloat16 to hold, so that it would never fall.
      clip_norm: largest global norm of the gradient; 0 for no clipping.
      layer_decay: by how much the learning rate shrinks from each layer to the one below, down from
        the heads; 1 for the same rate everywhere (see `scale_by_layer_decay`).
      lora_plus_ratio: the learning rate of LoRA's B as a multiple of everything else's, at least 1
        (see `scale_lora_b`).
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
    first_moment_dtype: str = "float32"
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    lora_plus_ratio: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("optimizer name", self.name, NAMES)
        _check_choice("optimizer schedule", self.schedule, SCHEDULES)
        _check_choice("optimizer first_moment_dtype", self.first_moment_dtype, MOMENT_TYPES)
        if self.name == "adafactor" and self.first_moment_dtype != "float32":
            raise UserError(
                "Optimizer first_moment_dtype is of adamw and lamb, and adafactor keeps no first "
                "moment; leave it out."
            )
        if not isinstance(self.warmup_steps, int | None):
            raise UserError(
                f"Optimizer warmup_steps is {self.warmup_steps!r}; give a whole number, or a share "
                "of all steps as warmup_share."
            )
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
            "layer_decay": (0.0, 1.0),
            "lora_plus_ratio": (1.0, math.inf),
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
    if config.name in ("adamw", "lamb"):
        corrected = config.bias_correction or config.name == "lamb"
        adam = optax.scale_by_adam if corrected else scale_by_uncorrected_adam
        dtype = config.first_moment_dtype
        parts += [adam(config.beta1, config.beta2, config.epsilon, mu_dtype=dtype), decay]
        if config.name == "lamb":
            parts.append(scale_by_matrix_trust_ratio())
    else:
        parts += [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
            decay,
        ]
    if config.layer_decay != 1.0:
        parts.append(scale_by_layer_decay(config.layer_decay))
    if config.lora_plus_ratio != 1.0:
        parts.append(scale_lora_b(config.lora_plus_ratio))
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


def _check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
        raise UserError(
            f"Unknown {what} {value!r} (did you mean {nearest!r}?); choose one of "
            f"{', '.join(choices)}."
        )
