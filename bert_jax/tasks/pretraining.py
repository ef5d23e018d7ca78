"""Pretraining as BERT had it: masked-language modelling, and next-sentence prediction beside it.

Shapes: B batch, L length, M masked positions, V vocabulary (padded).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax.data.corpus import Corpus, open_corpus
from bert_jax.data.corpus_copy import ensure_copy
from bert_jax.data.documentation_corpus import cached_docs_corpus, ensure_docs_corpus
from bert_jax.data.examples import ExampleStream
from bert_jax.data.masking import MaskingOptions, Unit
from bert_jax.data.mixture import Part, parse_mixture
from bert_jax.data.pairs import Objective, PairOptions
from bert_jax.data.rows import pad_batch
from bert_jax.data.tokenizer import CONTINUATION_PREFIX, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.flops import train_flops_per_token
from bert_jax.models.losses import correct_sum, cross_entropy_sum, weighted_sum
from bert_jax.storage import is_remote
from bert_jax.tasks.architecture import encoder_shape
from bert_jax.tasks.base import NEW, Batch, Phase, Start, Task
from bert_jax.tasks.enumerations import member
from bert_jax.tasks.fill_mask import sample_predictions
from bert_jax.training.assets import model_assets, tokenizer_in
from bert_jax.training.metrics import Ratio, Sums
from bert_jax.training.report import SamplePrediction
from bert_jax.training.transplant import extend_vocabulary

# Validation examples are a function of the corpus alone, so that runs can be compared.
_VALIDATION_SEED = 0


class Pretraining(Task):
    """Masked-language modelling over text, beside next sentences or sentence order."""

    selection = "mlm_loss"

    def __init__(self, config: ml_collections.ConfigDict, start: Start = NEW):
        super().__init__(config.copy_and_resolve_references(), start)
        config = self.config
        self._before = tokenizer_in(start.assets)  # the vocabulary that is gone on from
        self._objective = member(Objective, config.data.objective, "data.objective")
        self._unit = member(Unit, config.data.masking.unit, "data.masking.unit")
        self.losses = {"mlm_loss": 1.0}
        if self._objective is not Objective.NONE:
            self.losses[f"{self._objective}_loss"] = 1.0
        if not 0 <= config.second_phase.share < 1:
            raise UserError(
                f"second_phase.share={config.second_phase.share} is no share; give 0 to below 1"
            )
        self._parts = parse_mixture(config.corpus)
        known = start.identity["corpora"] if start.identity else []
        self._corpora = [
            _open(part, config, max(self._max_lengths), [fingerprint for fingerprint, _ in known])
            for part in self._parts
        ]
        self._names = _short_names(self._parts)
        self.tokenizer = self._corpora[0].tokenizer
        for part, corpus in zip(self._parts, self._corpora, strict=True):
            if corpus.tokenizer.hash != self.tokenizer.hash:
                raise UserError(
                    f"{part.corpus} and {self._parts[0].corpus} have different vocabularies; "
                    f"prepare one with --vocabulary of the other"
                )
            if (longest := max(self._max_lengths)) > corpus.max_length:
                raise UserError(
                    f"max_length={longest} is longer than {corpus.max_length}, the length that "
                    f"{part.corpus} was prepared for; prepare it with --max_length {longest}"
                )
        _check_vocabulary(self.tokenizer, start)
        chosen = config.model.get("vocabulary_chunks")  # which recipes from before have not
        encoder = dataclasses.replace(
            encoder_shape(config, start, self.tokenizer), vocabulary_size=self.tokenizer.size
        )
        if self._objective is not Objective.NONE:
            encoder.check_pairs()
        if chosen is None and config.mesh.fsdp != 1:
            # No larger part of the word table is gathered than of the layers.
            encoder = dataclasses.replace(encoder, vocabulary_chunks=encoder.layer_sized_chunks)
            if "vocabulary_chunks" in config.model:
                config.model.vocabulary_chunks = encoder.vocabulary_chunks
        self.description = ModelDescription(
            encoder, Head.PRETRAINING, pooler=self._objective is not Objective.NONE
        )
        self.model = self.description.model()
        if max(self._max_lengths) > self.description.config.max_positions:
            raise UserError(
                f"max_length={max(self._max_lengths)} needs as many positions, and "
                f"model.max_positions is {self.description.config.max_positions}; raise it"
            )
        # Made here, so that what is wrong with a split is said before the first step.
        everything = range(len(self._corpora))
        self._training_streams = [
            self._stream(
                number,
                "train",
                everything,
                config.seed,
                f"train phase {number}",
                config.data.get("sequences_per_row", 1),  # runs from before have none
            )
            for number in range(len(self._max_lengths))
        ]
        # One stream a corpus for each phase, so that every example counts once.
        self._validation_streams = [
            [
                self._stream(phase, "validation", [number], _VALIDATION_SEED, "validation")
                for number, corpus in enumerate(self._corpora)
                if "validation" in corpus.counts
            ]
            for phase in range(len(self._max_lengths))
        ]
        if config.total_steps == 0:
            config.total_steps = self.steps_of_epochs(1.0, self._epochs_per_step())
        if config.evaluation.examples < 0:
            raise UserError(
                f"evaluation.examples={config.evaluation.examples} must be at least 0, for all"
            )

    def _epochs_per_step(self) -> float:
        config = self.config
        shares = (1 - config.second_phase.share, config.second_phase.share)
        sizes = (config.batch_size, config.second_phase.batch_size or config.batch_size)
        return sum(
            share * size / stream.rows_per_epoch()
            for share, size, stream in zip(shares, sizes, self._training_streams, strict=False)
        )

    @property
    def _max_lengths(self) -> tuple[int, ...]:
        config = self.config
        two = config.second_phase.share > 0
        return (config.data.max_length, *([config.second_phase.max_length] if two else []))

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """One phase, or two of different lengths, as BERT was trained."""
        config = self.config
        second = config.second_phase
        boundary = config.total_steps - round(second.share * config.total_steps)
        names = [
            f"length {length}" + (f": {stream.packing}" if stream.packing else "")
            for length, stream in zip(self._max_lengths, self._training_streams, strict=True)
        ]
        phases = [Phase(0, boundary, config.batch_size, names[0])]
        for name in names[1:]:
            rows = second.batch_size or config.batch_size
            phases.append(Phase(boundary, config.total_steps, rows, name))
        return tuple(phases)

    def initialise(self, key: jax.Array) -> Any:
        """Makes the parameters, annotated with logical axes."""
        return self.description.initialise(key)

    def adopt(self, params: Any) -> Any:
        """Adds the rows of the words that the corpus's vocabulary has beyond that of the start.

        Each begins as the mean of the pieces that the word had before (Gee et al., 2022, "Fast
        Vocabulary Transfer", arXiv:2402.09977).
        """
        before = self._before
        if before is None:
            return params
        added = self.tokenizer.vocabulary[before.size :]
        words = [token.removeprefix(CONTINUATION_PREFIX) for token in added]
        pieces = [ids or [before.unknown_id] for ids in before.encode_batch(words)]
        rows = self.description.config.padded_vocabulary_size
        return extend_vocabulary(params, before.size, pieces, rows)

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Losses and accuracies of both objectives, and the unigram model's loss for comparison."""
        labels_BM, weights_BM = batch["masked_labels"], batch["masked_weights"]
        scores: tuple[jax.Array, jax.Array, jax.Array | None] = self.model.apply(  # type: ignore[assignment]
            {"params": params},
            batch["token_ids"],
            batch["segment_ids"],
            batch["lengths"],
            batch["masked_positions"],
            labels_BM,
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method="score",
        )
        losses_BM, correct_BM, pair_logits = scores
        surprise_BM = -jnp.asarray(self._unigram_log_probabilities)[labels_BM]
        masked = jnp.sum(weights_BM)
        sums = {
            "mlm_loss": Ratio(*weighted_sum(losses_BM, weights_BM)),
            "mlm_accuracy": Ratio(*weighted_sum(correct_BM, weights_BM)),
            "unigram_loss": Ratio(jnp.sum(surprise_BM * weights_BM), masked),
            "tokens": Ratio(jnp.sum(batch["lengths"]).astype(jnp.float32), jnp.ones(())),
        }
        if pair_logits is not None:
            name = str(self._objective)
            pair = (pair_logits, batch["next_sentence_label"], batch["example_weights"])
            sums[f"{name}_loss"] = Ratio(*cross_entropy_sum(*pair))
            sums[f"{name}_accuracy"] = Ratio(*correct_sum(*pair))
        return sums

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Adds the perplexity of the masked tokens."""
        values = super().metrics(sums)
        values["mlm_perplexity"] = math.exp(min(values["mlm_loss"], 700.0))
        return values

    @cached_property
    def _unigram_log_probabilities(self) -> np.ndarray:
        """Log-probabilities of single tokens in the training splits, add-one smoothed: float32 [V].

        In a mixture, each corpus counts by its share of the rows.
        """
        probabilities = np.zeros(self.tokenizer.size)
        for part, corpus in zip(self._parts, self._corpora, strict=True):
            counts = corpus.unigram_counts + 1.0
            probabilities += part.weight * counts / counts.sum()
        return np.log(probabilities).astype(np.float32)

    # --- data ---

    def _stream(
        self,
        phase: int,
        split: str,
        numbers: Sequence[int],
        seed: int,
        purpose: str,
        sequences_per_row: int = 1,
    ) -> ExampleStream:
        data, length = self.config.data, self._max_lengths[phase]
        weights = np.array([self._parts[number].weight for number in numbers])
        return ExampleStream(
            [self._corpora[number].split(split) for number in numbers],
            weights / weights.sum(),
            self.tokenizer,
            PairOptions(
                length,
                self._objective,
                data.short_sequence_share,
                data.random_next_share,
                sequences_per_row,
            ),
            MaskingOptions(length, **{**data.masking, "unit": self._unit}),
            seed=seed,
            purpose=purpose,
        )

    def training_batch(self, step: int, rows: slice) -> dict[str, np.ndarray]:
        """The given rows of the global batch of the update that follows ``step`` updates."""
        phase = self.phase_at(step)
        stream = self._training_streams[self.phases.index(phase)]
        first_row = (step - phase.first_step) * phase.batch_size
        return stream.batch(first_row + rows.start, rows.stop - rows.start)

    def _validation_sizes(self, phase: Phase) -> list[int]:
        """How many examples of each corpus are evaluated."""
        streams = self._validation_streams[self.phases.index(phase)]
        sizes = [stream.epoch_sizes()[0] for stream in streams]
        total = sum(sizes)
        asked = self.config.evaluation.examples or total
        return [min(size, math.ceil(asked * size / total)) for size in sizes]

    def validation_size(self, phase: Phase) -> int:
        """All validation examples, or as many as ``evaluation.examples`` asks for."""
        return sum(self._validation_sizes(phase))

    def validation_batch(
        self, phase: Phase, number: int, size: int, rows: slice
    ) -> dict[str, np.ndarray]:
        """Rows of a batch of validation examples; corpora come one after the other."""
        first, end = number * size + rows.start, number * size + rows.stop
        parts = []
        start = 0
        streams = self._validation_streams[self.phases.index(phase)]
        for stream, examples in zip(streams, self._validation_sizes(phase), strict=True):
            low, high = max(first, start), min(end, start + examples)
            if low < high:
                parts.append(stream.batch(low - start, high - low))
            start += examples
        if not parts:  # this process's rows all lie past the end; take the shapes of any row
            parts.append({name: array[:0] for name, array in streams[0].batch(0, 1).items()})
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return pad_batch(batch, end - first)

    def data_metrics(self, step: int) -> dict[str, float]:
        """Epochs of each phase's data, and the sequences read of each corpus of a mixture."""
        counts = np.zeros(len(self._corpora), np.int64)
        epochs = 0.0
        for phase, stream in zip(self.phases, self._training_streams, strict=True):
            steps = max(min(step, phase.end_step) - phase.first_step, 0)
            mine = stream.counts(steps * phase.batch_size)
            counts += mine
            epochs += float(mine.sum() / sum(stream.epoch_sizes()))
        values = {"data/epochs": epochs}
        if len(self._names) > 1:
            values |= {
                f"data/rows/{name}": float(count)
                for name, count in zip(self._names, counts, strict=True)
            }
        return values

    # --- what a checkpoint holds, and what a report shows ---

    def identity(self) -> dict[str, Any]:
        """The corpora's fingerprints and shares, in order, and the vocabulary's hash."""
        return {
            "corpora": [
                [corpus.fingerprint, part.weight]
                for part, corpus in zip(self._parts, self._corpora, strict=True)
            ],
            "vocabulary": self.tokenizer.hash,
        }

    def assets(self) -> dict[str, str]:
        """The vocabulary, and what the model is."""
        return model_assets(self.description, self.tokenizer)

    def flops_per_token(self, length: int) -> float:
        """Forward and backward, with only the masked positions decoded.

        In rows that several sequences share, a token attends within its own.
        """
        share = self.config.data.masking.share
        packing = self._training_streams[self._max_lengths.index(length)].packing
        attended = length if packing is None else packing.attended_length
        own = length if packing is None else packing.mean_length
        first = 0.0 if self._objective is Objective.NONE else 1 / own
        return train_flops_per_token(self.description.config, attended, share, share + first)

    def headline(self, validation: Mapping[str, float]) -> dict[str, str | float]:
        """The masked-token loss next to that of the unigram model, and the accuracies."""
        if not validation:
            return {"validation": "the corpus has no validation split"}
        loss = validation["mlm_loss"]
        unigram = validation["unigram_loss"]
        numbers: dict[str, str | float] = {
            "masked-token loss (nats)": loss,
            "unigram baseline (nats)": unigram,
            "below the baseline (nats)": unigram - loss,
            "masked-token accuracy": f"{validation['mlm_accuracy']:.1%}",
        }
        if self._objective is not Objective.NONE:
            accuracy = validation[f"{self._objective}_accuracy"]
            numbers[f"{self._objective.upper()} accuracy"] = f"{accuracy:.1%}"
        return numbers

    def samples(self, params: Any) -> Sequence[SamplePrediction]:
        """Masked validation rows with what the model would fill in."""
        if not self.validation_size(self.phases[-1]):
            return ()
        batch = self.validation_batch(self.phases[-1], 0, 8, slice(0, 8))
        return sample_predictions(self.model, params, self.tokenizer, batch)


def _check_vocabulary(tokenizer: WordPieceTokenizer, start: Start) -> None:
    """A new run can start only from parameters whose tokens have the same ids here."""
    before = tokenizer_in(start.assets)
    if start.identity is not None or before is None:
        return
    same_ids = tokenizer.vocabulary[: before.size] == before.vocabulary
    if not same_ids or tokenizer.lowercase != before.lowercase:
        raise UserError(
            "init_from was trained with another vocabulary than the corpus was prepared with; "
            "prepare the corpus with that model's vocabulary (prepare --vocabulary DIRECTORY), "
            "which may be extended there (--extend_vocabulary)"
        )


def _open(
    part: Part, config: ml_collections.ConfigDict, max_length: int, known: Sequence[str]
) -> Corpus:
    if is_remote(part.corpus):
        return open_corpus(ensure_copy(part.corpus))
    if part.corpus != "docs":
        return open_corpus(part.corpus)
    # A run keeps its corpus when a package's new version would make another one.
    directory = cached_docs_corpus(known) or ensure_docs_corpus(
        vocabulary_size=config.docs.vocabulary_size,
        max_length=max_length,
        lowercase=config.docs.lowercase,
    )
    return open_corpus(directory)


def _short_names(parts: Sequence[Part]) -> list[str]:
    """The last part of each corpus's path, or all of it where two end alike."""
    names = [part.corpus.rstrip("/").rpartition("/")[2] for part in parts]
    return names if len(set(names)) == len(names) else [part.corpus for part in parts]
