"""What a task is: its examples, its model, its loss and its metrics. The loop knows no more."""

import abc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import ml_collections
import numpy as np

from bert_jax.errors import UserError
from bert_jax.training.metrics import Sums
from bert_jax.training.report import SamplePrediction

Batch: TypeAlias = Mapping[str, Any]


class Phase(NamedTuple):
    """A stretch of the run in which every batch has the same shapes.

    Attributes:
      first_step: updates made before the phase starts.
      end_step: updates made when it ends.
      batch_size: examples in a global batch.
      description: a few words for the plan, such as ``length 128``.
      validation_batch_size: examples in a global batch of an evaluation; 0: as many as in training.
    """

    first_step: int
    end_step: int
    batch_size: int
    description: str = "examples"
    validation_batch_size: int = 0

    @property
    def evaluated_at_once(self) -> int:
        """Examples in a global batch of an evaluation."""
        return self.validation_batch_size or self.batch_size


class Start(NamedTuple):
    """What a task begins with: the checkpoint of its own run, or that of ``init_from``.

    Attributes:
      assets: what that checkpoint carries, such as the vocabulary; empty for a run from nothing.
      identity: what the run that goes on must share with its checkpoint; None for a new run.
      trains: whether there will be updates; without, no training data are needed.
      params: the parameters of ``init_from``; None for a run that goes on.
    """

    assets: Mapping[str, str] = MappingProxyType({})
    identity: Mapping[str, Any] | None = None
    trains: bool = True
    params: Any = None


NEW = Start()


class Task(abc.ABC):
    """One thing to learn.

    Batches are dictionaries of NumPy arrays whose first axis counts examples. What they hold is a
    pure function of the config and the numbers passed in. A task keeps no state.

    Attributes:
      config: the config; a task may fill in what it leaves open, such as the number of steps.
      losses: sums that are minimised, with their coefficients.
      selection: the validation metric that decides which checkpoint is best.
      higher_is_better: of that metric.
    """

    losses: Mapping[str, float]
    selection: str = "loss"
    higher_is_better: bool = False

    def __init__(self, config: ml_collections.ConfigDict, start: Start = NEW):
        self.config = config

    @property
    def lengths_vary(self) -> bool:
        """Whether a phase has batches of several lengths."""
        return False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The run's phases, in order; one phase unless a task says otherwise."""
        return (Phase(0, self.config.total_steps, self.config.batch_size),)

    def phase_at(self, step: int) -> Phase:
        """The phase of the update that follows ``step`` updates; the last one when none follows."""
        return next((p for p in self.phases if step < p.end_step), self.phases[-1])

    @abc.abstractmethod
    def initialise(self, key: jax.Array) -> Any:
        """Makes the parameters, which may be annotated with logical axes."""

    def adopt(self, params: Any) -> Any:
        """Fits the parameters of ``init_from`` to this task's model, before they are taken over."""
        return params

    @abc.abstractmethod
    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Losses and metrics of a batch as sums over weights; traced by ``jit``.

        The weights depend on the batch alone. ``tokens``, if there, counts real tokens with weight
        1 and gives the speed. Without a key there is no dropout.
        """

    @abc.abstractmethod
    def training_batch(self, step: int, rows: slice) -> dict[str, np.ndarray]:
        """The given rows of the global batch of the update that follows ``step`` updates."""

    def example_shapes(self, phase: Phase) -> dict[str, jax.ShapeDtypeStruct]:
        """One example of a phase's batches, without data; the longest where lengths differ."""
        return shapes_of_examples(self.training_batch(phase.first_step, slice(0, 1)))

    @abc.abstractmethod
    def validation_size(self, phase: Phase) -> int:
        """How many validation examples there are; none means that nothing is evaluated."""

    @abc.abstractmethod
    def validation_batch(
        self, phase: Phase, number: int, size: int, rows: slice
    ) -> dict[str, np.ndarray]:
        """The given rows of a global batch of validation examples.

        Args:
          phase: the phase whose examples are evaluated.
          number: of the batch; example i of the split stands in batch ``i // size``.
          size: examples in a global batch. Those past the end have weight zero.
          rows: the rows to make.
        """

    def outputs(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """What ``scores`` needs of each example, on the first axis; traced by ``jit``."""
        return {}

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Turns sums into the values that are reported, ``loss`` among them."""
        values = {name: float(ratio.mean) for name, ratio in sums.items()}
        values["loss"] = sum(scale * values[name] for name, scale in self.losses.items())
        return values

    def scores(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the whole split that are no mean over examples.

        Args:
          outputs: ``outputs`` of all validation examples, in their order, without padding.
        """
        return {}

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What else an evaluation has to say, such as a confusion matrix: plain JSON."""
        return {}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """What the model says of each validation example, in the data's order: plain JSON.

        The key ``prediction`` has the answer.
        """
        return []

    def indices(self) -> Sequence[Any] | None:
        """What the data call each validation example, in their order; None: its position."""
        return None

    def data_metrics(self, step: int) -> dict[str, float]:
        """What the run has read after ``step`` updates, for the log."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this task to be gone on from: plain JSON."""
        return {}

    def assets(self) -> dict[str, str]:
        """Texts without which the parameters are of no use, such as the vocabulary."""
        return {}

    def flops_per_token(self, length: int) -> float | None:
        """FLOPs of an update per token of sequences of a length, where there is a formula."""
        return None

    def steps_of_epochs(self, rows: float, rows_per_step: float) -> int:
        """How many updates the config's epochs take.

        Args:
          rows: of an epoch.
          rows_per_step: of an update.

        Raises:
          UserError: there are no epochs.
        """
        epochs = self.config.get("epochs", 0.0)  # a recipe may count in steps alone
        if not 0 < epochs < math.inf:
            raise UserError(
                f"total_steps=0 and epochs={epochs} leave nothing to train; give "
                "--config.total_steps"
            )
        return max(1, round(epochs * rows / rows_per_step))

    def headline(self, validation: Mapping[str, float]) -> dict[str, str | float]:
        """The numbers that open the report, by their labels.

        Args:
          validation: the metrics, by name, of the evaluation that the run is judged by; none where
            there was no evaluation.
        """
        return {f"validation {name}": value for name, value in validation.items()}

    def finish(self, workdir: Path, params: Any) -> Sequence[str]:
        """Leaves what a run leaves besides checkpoints, metrics and report; says so in lines.

        All processes call it, and the first one writes.
        """
        return ()

    def samples(self, params: Any) -> Sequence[SamplePrediction]:
        """A few predictions on validation examples, for the report."""
        return ()


def shapes_of_examples(batch: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of one example of a batch."""
    return {
        name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in batch.items()
    }


def sequence_length(batch: Mapping[str, Any]) -> int | None:
    """The length that a batch's sequences are padded to; None where it holds no tokens."""
    return batch["token_ids"].shape[-1] if "token_ids" in batch else None
