"""What the tasks share that fine-tune an encoder on labelled rows of text.

A task of this kind reads its data into memory once, as rows of tokens; batches of rows of about the
same length are planned from their lengths, or with ``data.sequences_per_row`` rows that several
short ones share. The encoder's shape and its vocabulary come with the
parameters that ``init_from`` names, and afterwards with the run's own checkpoints.
"""

import abc
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from bert_jax.data.bucketing import BucketPlan, choose_lengths, padded_length
from bert_jax.data.corpus import read_vocabulary
from bert_jax.data.order import shuffled_rows
from bert_jax.data.packing import OF_TOKENS, Packing, PackingPlan, pack_batch
from bert_jax.data.rows import Rows, pad_batch
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.formats.adapter_file import base_fingerprint, save_adapter
from bert_jax.models.description import ModelDescription
from bert_jax.models.flops import train_flops_per_token
from bert_jax.storage import as_path
from bert_jax.tasks.architecture import encoder_shape
from bert_jax.tasks.base import NEW, Batch, Phase, Start, Task, shapes_of_examples
from bert_jax.training.assets import description_in, model_assets, tokenizer_in
from bert_jax.training.processes import is_first, to_host
from bert_jax.training.run_description import format_bytes

ADAPTER = "adapter.safetensors"
_LOWER_IS_BETTER = ("loss", "mse")
_BASE_FINGERPRINT = "base_fingerprint"
_ROWS_AT_ONCE = 4096


class FineTuning(Task):
    """A task on rows of text that are held in memory.

    A subclass reads its data in ``read``, where it also sets what it needs besides, and says in
    ``describe`` what model it trains.

    Attributes:
      tokenizer: the encoder's vocabulary.
      encoder: the encoder's shape.
      description: what the model is.
      model: the flax module.
      labels: names of the classes, labels or tags, for a task that has them.
      can_pack: whether ``sums`` takes batches of rows that several sequences share.
      of_tokens: the arrays of a batch that have an element for each token, [B, L].
    """

    labels: tuple[str, ...] = ()
    can_pack = False
    of_tokens: Collection[str] = OF_TOKENS
    description: ModelDescription

    def __init__(self, config: ml_collections.ConfigDict, start: Start = NEW):
        super().__init__(config.copy_and_resolve_references(), start)
        config = self.config
        self.selection = config.selection
        self.higher_is_better = self.selection not in _LOWER_IS_BETTER
        described = description_in(start.assets)
        if not start.trains and described is not None:
            self.labels = described.labels
        self._start = start._replace(params=None)
        self.tokenizer = _tokenizer(config, start)
        self.encoder = encoder_shape(config, start, self.tokenizer)
        longest = config.data.max_length
        if longest > self.encoder.max_positions:
            raise UserError(
                f"data.max_length={longest} is more than the {self.encoder.max_positions} "
                "positions of the encoder; lower it"
            )
        if self.encoder.is_adapted and config.reinitialise_layers:
            raise UserError(
                f"reinitialise_layers={config.reinitialise_layers} changes the encoder that LoRA "
                "and adapters share with others; leave it out, or train without them"
            )
        self._base_fingerprint = start.assets.get(_BASE_FINGERPRINT)
        if self.encoder.is_adapted and self._base_fingerprint is None:
            if start.params is None:
                raise UserError(
                    "LoRA and adapters adapt a trained encoder; give --config.init_from=DIRECTORY"
                )
            self._base_fingerprint = base_fingerprint(start.params, self.encoder)
        self._sequences_per_row = config.data.get("sequences_per_row", 1)
        self._packing: PackingPlan | None = None
        training = self.read("train") if start.trains else None
        self._validation = self.read("validation")
        self.description = self.describe()
        self.model = self.description.model()
        if training is not None:
            self._training = training
            self._packing = self._plan_packing()
            if config.total_steps == 0:
                rows = self._packing.rows_per_epoch if self._packing else len(training)
                config.total_steps = self.steps_of_epochs(rows, max(1, config.batch_size))
            if self._packing is None:
                # A run that goes on for more steps may pad otherwise from there, and drop others.
                self._training_lengths = choose_lengths(
                    training.lengths, longest, config.total_steps
                )
                self._plan = BucketPlan(
                    training.lengths, self._training_lengths, config.batch_size, config.seed
                )
        # Long rows come last, so that a batch holds rows of about the same length.
        self._order = np.argsort(self._validation.lengths, kind="stable")
        batches = len(self._validation) / max(1, config.batch_size)
        self._validation_lengths = choose_lengths(self._validation.lengths, longest, batches)

    @abc.abstractmethod
    def read(self, split: str) -> Rows:
        """The rows of ``train``, which comes first if it is asked for, or of ``validation``.

        Raises:
          UserError: the data cannot be used.
        """

    @abc.abstractmethod
    def describe(self) -> ModelDescription:
        """The model, once the data are read."""

    @abc.abstractmethod
    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the validation rows from the outputs of each, in the data's order."""

    # --- data ---

    @property
    def packing(self) -> Packing | None:
        """What packing comes to, where training rows share rows of the model."""
        return None if self._packing is None else self._packing.packing

    @property
    def lengths_vary(self) -> bool:
        """Unless sequences share rows."""
        return self._packing is None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One phase, in which batches have several lengths, or all rows are shared."""
        config = self.config
        name = f"length {config.data.max_length}: {self.packing}"
        if self.packing is None:
            name = "rows of several lengths"
        # Where rows are shared, about as many tokens at a time as in training.
        shared = round(config.data.max_length / self._validation.lengths.mean())
        validated = config.batch_size * max(1, min(shared, self._sequences_per_row))
        return (Phase(0, config.total_steps, config.batch_size, name, validated),)

    def training_batch(self, step: int, rows: slice) -> dict[str, np.ndarray]:
        """The given rows of the global batch of the update that follows ``step`` updates."""
        if self._packing:
            return self._packed_batch(self._packing, step, rows)
        numbers, length = self._plan.batch(step)
        return self._batch(self._training, numbers[rows], length)

    def example_shapes(self, phase: Phase) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a row of the longest batches."""
        if self._packing:
            return super().example_shapes(phase)
        longest = np.argmax(self._training.lengths, keepdims=True)
        batch = self._batch(self._training, longest, self._training_lengths[-1])
        return shapes_of_examples(batch)

    def validation_size(self, phase: Phase) -> int:
        """All validation rows."""
        return len(self._validation)

    def validation_batch(
        self, phase: Phase, number: int, size: int, rows: slice
    ) -> dict[str, np.ndarray]:
        """Rows of a batch of validation rows, the short ones first."""
        whole = self._order[number * size : (number + 1) * size]
        longest = int(self._validation.lengths[whole].max())
        length = padded_length(longest, self._validation_lengths)
        return pad_batch(self._batch(self._validation, whole[rows], length), rows.stop - rows.start)

    def _plan_packing(self) -> PackingPlan | None:
        """How training rows share rows of the model, if they do."""
        config = self.config
        most = self._sequences_per_row
        if most < 1:
            raise UserError(f"data.sequences_per_row is {most}; give 1, or more to pack")
        if most == 1:
            return None
        if not self.can_pack:
            raise UserError(
                f"data.sequences_per_row is {most}, and rows of the task {config.task!r} cannot be "
                "shared; set it to 1"
            )
        return PackingPlan(
            self._shuffled_lengths,
            len(self._training),
            config.data.max_length,
            most,
            seed=config.seed,
            purpose="rows",
        )

    def _shuffled(self, numbers: np.ndarray) -> np.ndarray:
        """The training rows that the endless stream has at some numbers."""
        return shuffled_rows(len(self._training), numbers, self.config.seed)

    def _shuffled_lengths(self, numbers: np.ndarray) -> np.ndarray:
        return self._training.lengths[self._shuffled(numbers)]

    def _packed_batch(self, packing: PackingPlan, step: int, rows: slice) -> dict[str, np.ndarray]:
        length, count = self.config.data.max_length, rows.stop - rows.start
        first = step * self.config.batch_size + rows.start
        numbers, row_of = packing.rows(first, count)
        batch = self._batch(self._training, self._shuffled(numbers), length)
        return pack_batch(batch, row_of, count, length, packing.most, self.of_tokens)

    def _batch(self, source: Rows, numbers: np.ndarray, length: int) -> dict[str, np.ndarray]:
        batch = source.rows(numbers, length)
        return batch | {"example_weights": np.ones(len(numbers), np.float32)}

    # --- model ---

    def initialise(self, key: jax.Array) -> Any:
        """Random parameters, annotated with logical axes."""
        return self.description.initialise(key)

    def apply(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Any:
        """The model's outputs for a batch; dropout only with a key."""
        return apply_model(self.model, params, batch, dropout_key)

    def scores(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The metrics of ``score``."""
        return self.score(self.in_order_of_data(outputs))

    def in_order_of_data(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of the validation rows as the data have them, rather than by length."""
        places = np.argsort(self._order)
        return {name: array[places] for name, array in outputs.items()}

    def flops_per_token(self, length: int) -> float:
        """Forward and backward, without the vocabulary."""
        attended = self.packing.attended_length if self.packing else length
        own = self.packing.mean_length if self.packing else length
        read_share = 1 / own if self.description.reads_first_position_only else 1.0
        trains = self.encoder.is_adapted or not self.config.freeze.encoder
        return train_flops_per_token(self.encoder, attended, 0.0, read_share, trains_encoder=trains)

    # --- what a checkpoint holds ---

    def identity(self) -> dict[str, Any]:
        """Fingerprints of the rows and the vocabulary; of training rows not read, the run's."""
        own = {
            # Scores of other rows could not be compared.
            "validation": _fingerprint(self._validation),
            "vocabulary": self.tokenizer.hash,
        }
        if self._start.trains:
            return {"data": _fingerprint(self._training)} | own
        return dict(self._start.identity or {}) | own

    def assets(self) -> dict[str, str]:
        """The vocabulary, the model's description, and of an adapted encoder which one it was."""
        adapted = {_BASE_FINGERPRINT: self._base_fingerprint} if self._base_fingerprint else {}
        return adapted | model_assets(self.description, self.tokenizer)

    def finish(self, workdir: Path, params: Any) -> Sequence[str]:
        """Writes what adapts the encoder to a small file, if it was adapted."""
        if not self._base_fingerprint:
            return ()
        path = workdir / ADAPTER
        whole = to_host(params)
        if not is_first():
            return ()
        save_adapter(path, whole, self.description, self._base_fingerprint)
        size = format_bytes(path.stat().st_size)
        return [f"{path} ({size}) adapts the encoder of {self.config.init_from}"]


def apply_model(
    model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None = None
) -> Any:
    """The outputs of a model for a batch of ``token_ids``, ``segment_ids`` and ``lengths``.

    Args:
      model: encodes sequences.
      params: its parameters.
      batch: int32 [B, L] twice, and [B], or [B, Q] of rows that several sequences share.
      dropout_key: for dropout; None is without.
    """
    return model.apply(
        {"params": params},
        batch["token_ids"],
        batch["segment_ids"],
        batch["lengths"],
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )


def one_text_a_row(batch: Batch) -> dict[str, Any]:
    """A batch of rows of several texts, [B, K, ...], as what ``apply_model`` reads, [B*K, ...]."""
    return {
        name: batch[name].reshape(-1, *batch[name].shape[2:])
        for name in ("token_ids", "segment_ids", "lengths")
    }


def _fingerprint(source: Rows) -> str:
    digest = hashlib.sha256()
    longest = int(source.lengths.max())
    for first in range(0, len(source), _ROWS_AT_ONCE):
        numbers = np.arange(first, min(first + _ROWS_AT_ONCE, len(source)))
        rows = source.rows(numbers, longest)
        for name in sorted(rows):
            digest.update(rows[name].tobytes())
    return digest.hexdigest()


def _tokenizer(config: ml_collections.ConfigDict, start: Start) -> WordPieceTokenizer:
    if (tokenizer := tokenizer_in(start.assets)) is not None:
        return tokenizer
    if config.vocabulary:
        return read_vocabulary(as_path(config.vocabulary))
    raise UserError(
        "there is no encoder to fine-tune; give --config.init_from=DIRECTORY (a run, or a Hugging "
        "Face model), or for one with random weights --config.size and --config.vocabulary"
    )
