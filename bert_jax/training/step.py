"""The compiled functions of a run: one update, and the sums of one evaluation batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bert_jax.training.metrics import Ratio, Scalar, Sums, merge
from bert_jax.training.partition import (
    Masking,
    everything,
    join,
    split,
    trained_part,
    where_trained,
)
from bert_jax.training.state import TrainState

Batch: TypeAlias = Mapping[str, jax.Array]


class StepSettings(NamedTuple):
    """Settings that a compiled step is given anew, so that runs of others can share the program.

    Attributes:
      dropout_key: the run's key; each step and microbatch folds its number in.
      learning_rate: float32 scalar, the peak of the schedule.
    """

    dropout_key: jax.Array
    learning_rate: jax.Array


class SumsOfLosses(Protocol):
    """What a step needs to know of a task."""

    losses: Mapping[str, float]

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums: ...

    def outputs(self, params: Any, batch: Batch) -> dict[str, jax.Array]: ...


def make_train_step(
    task: SumsOfLosses,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation_steps: int = 1,
    masking: Masking = everything,
) -> Callable[[TrainState, Batch, StepSettings], tuple[TrainState, dict[str, Ratio]]]:
    """Makes the function ``(state, batch, settings) -> (state, sums)`` that is one update.

    The loss is the sum over ``task.losses`` of coefficient * total / weight, with the weights of
    the whole batch; so splitting the batch into microbatches changes memory, and nothing else.

    Args:
      task: has ``losses`` and ``sums``.
      optimizer: the optimizer, for a learning rate with the peak 1.
      schedule: that rate by step; times the peak it is reported as ``learning_rate``.
      accumulation_steps: microbatches per update; divides the batch.
      masking: says which parameters are trained. The others do not change by a bit, nor count in
        the gradient's norm; of a leaf that is frozen as a whole no gradient is computed.
    """

    def loss(
        trained: Any, frozen: Any, batch: Batch, key: jax.Array, weights: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, Sums]:
        sums = task.sums(join(trained, frozen), batch, key)
        total = jnp.zeros(())
        for name, scale in task.losses.items():
            total += scale * sums[name].total / weights[name]
        return total, sums

    def step(
        state: TrainState, batch: Batch, settings: StepSettings
    ) -> tuple[TrainState, dict[str, Ratio]]:
        key = jax.random.fold_in(settings.dropout_key, state.step)
        # Only the weights are used, and they do not depend on the parameters: the compiler drops
        # the forward pass that this seems to run.
        whole = task.sums(state.params, batch, None)
        weights = {name: _positive(whole[name].weight) for name in task.losses}
        mask = masking(state.params)
        trained, frozen = split(state.params, mask)
        mask = trained_part(mask, mask)
        gradient = jax.grad(loss, has_aux=True)
        if accumulation_steps == 1:
            gradients, sums = gradient(trained, frozen, batch, key, weights)
        else:
            gradients, sums = _accumulate(
                lambda part, number: gradient(
                    trained, frozen, part, jax.random.fold_in(key, number), weights
                ),
                batch,
                accumulation_steps,
            )
        gradients = where_trained(mask, gradients, optax.tree.zeros_like(gradients))
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, trained)
        updates = optax.tree.scale(settings.learning_rate, updates)
        learning_rate = settings.learning_rate * schedule(state.step)
        one = jnp.ones(())
        report = {
            **sums,
            "learning_rate": Ratio(jnp.asarray(learning_rate, jnp.float32), one),
            "gradient_norm": Ratio(optax.tree.norm(gradients), one),
        }
        # Updates of zero would not hold what is frozen: -0.0 + 0.0 is another bit.
        trained = where_trained(mask, optax.apply_updates(trained, updates), trained)
        return TrainState(state.step + 1, join(trained, frozen), optimizer_state), report

    return step


def _positive(weight: Scalar) -> jax.Array:
    """The weight, or 1 where a batch has nothing to learn from, so that its loss is zero."""
    return jnp.where(weight > 0, weight, 1.0)


def _accumulate(
    gradient: Callable[[Batch, jax.Array], tuple[Any, Sums]], batch: Batch, parts: int
) -> tuple[Any, dict[str, Ratio]]:
    """Adds up gradients and sums over microbatches, one after the other."""

    def split(array: jax.Array) -> jax.Array:
        # Neighbouring rows go to different microbatches, so that each device keeps its own rows.
        rows = array.shape[0]
        return array.reshape(rows // parts, parts, *array.shape[1:]).swapaxes(0, 1)

    stacked = jax.tree.map(split, dict(batch))
    first = jax.tree.map(lambda array: array[0], stacked)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, first, 0)
    )

    def add(carry: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        number, part = numbered
        gradients, sums = gradient(part, number)
        total, total_sums = carry
        return (jax.tree.map(jnp.add, total, gradients), merge(total_sums, sums)), None

    carry, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), stacked))
    return carry


def make_evaluation_step(
    task: SumsOfLosses,
) -> Callable[[Any, Batch], tuple[Sums, dict[str, jax.Array]]]:
    """Makes the function ``(params, batch) -> (sums, outputs)``, without dropout."""
    # The forward pass that both contain is compiled as one.
    return lambda params, batch: (task.sums(params, batch, None), task.outputs(params, batch))
