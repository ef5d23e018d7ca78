"""The best of several texts: the ending of a story, the answer to a question.

Each choice is scored in its context, ``[CLS] context [SEP] question choice [SEP]``, and the scores
of a row's choices meet in one softmax, as in SWAG (Zellers et al., arXiv:1808.05326) with BERT
(Devlin et al., arXiv:1810.04805, section 4.4).

Shapes: N examples, B batch, C choices, L length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bert_jax.data.tables import Table, texts_of
from bert_jax.data.text_groups import TextGroups, group_texts
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.description import Head, ModelDescription, Pooling
from bert_jax.models.losses import correct_sum, cross_entropy_sum
from bert_jax.tasks.base import Batch
from bert_jax.tasks.fine_tuning import apply_model, one_text_a_row
from bert_jax.tasks.labelled_fine_tuning import LabelledFineTuning, token_sum
from bert_jax.training.metrics import Ratio, Sums

# The score of a choice that a row does not have; its probability is exactly zero.
_NO_CHOICE = -1e9
# What stands in the column of labels where a row has none.
_HIDDEN = (None, "", -1, "-1")


class Choice(LabelledFineTuning):
    """One of each row's choices."""

    def columns(self, split: str) -> Sequence[str]:
        """The context, the question and the choices."""
        data = self.config.data
        beside = [column for column in (data.context, data.question) if column]
        return [*beside, *self._choice_columns]

    def texts(self, table: Table) -> TextGroups:
        """A text for each choice of each row."""
        self.encoder.check_pairs()
        data = self.config.data
        contexts, questions = (
            texts_of(table, column) if column else [""] * len(table)
            for column in (data.context, data.question)
        )
        choices = choices_of(table, self._choice_columns)
        return choice_rows(contexts, questions, choices, self.tokenizer, max_length=data.max_length)

    def targets(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """int32 [N], the numbers of the right choices."""
        choices = choices_of(table, self._choice_columns)
        return choice_numbers(table, self.config.data.label, choices)

    @property
    def _choice_columns(self) -> list[str]:
        return [name.strip() for name in self.config.data.choices.split(",")]

    def describe(self) -> ModelDescription:
        """BERT's classifier of sequences, with one output."""
        return ModelDescription(
            self.encoder,
            Head.CHOICE,
            pooler=self.pooling is Pooling.CLS,
            max_length=self.config.data.max_length,
        )

    def apply(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
        """The scores of each row's choices: float32 [B, C]."""
        return choice_scores(self.model, params, batch, dropout_key)

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Cross-entropy over the choices, and accuracy."""
        scores_BC = self.apply(params, batch, dropout_key)
        weights_B = batch["weights"] * batch["example_weights"]
        return {
            "loss": Ratio(*cross_entropy_sum(scores_BC, batch["targets"], weights_B)),
            "accuracy": Ratio(*correct_sum(scores_BC, batch["targets"], weights_B)),
            "tokens": token_sum(batch),
        }

    def score_labels(
        self, truth: np.ndarray, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Accuracy."""
        return {"accuracy": float(np.mean(outputs["scores"].argmax(axis=-1) == truth))}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """The number of each row's choice, from 0, and the probabilities of all."""
        return choice_predictions(self.in_order_of_data(outputs)["scores"])


def choice_rows(
    contexts: Sequence[str],
    questions: Sequence[str],
    choices: Sequence[Sequence[str]],
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
) -> TextGroups:
    """A text for each choice of each row.

    Args:
      contexts: what the choice depends on; may be empty.
      questions: what stands directly before each choice; may be empty.
      choices: of each row, at least one.
      tokenizer: the vocabulary.
      max_length: the most tokens of a text, special ones included.
    """
    first, second = [], []
    for context, question, row in zip(contexts, questions, choices, strict=True):
        for choice in row:
            first.append(context or question)
            second.append(f"{question} {choice}" if context and question else choice)
    counts = [len(row) for row in choices]
    return group_texts(first, second, counts, tokenizer, max_length=max_length)


def choices_of(table: Table, columns: Sequence[str]) -> list[list[str]]:
    """The choices of each row: a list in one column, or a column for each.

    Raises:
      UserError: a row has fewer than two, or one that is no text.
    """
    if len(columns) > 1:
        return [list(row) for row in zip(*(texts_of(table, name) for name in columns), strict=True)]
    for place, value in zip(table.places, table.columns[columns[0]], strict=True):
        if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
            raise UserError(
                f"{place} has {value!r} in the column {columns[0]!r}, where a list of texts should "
                "stand; or name a column for each choice: --config.data.choices=first,second"
            )
        if len(value) < 2:
            raise UserError(
                f"{place} has {len(value)} in the column {columns[0]!r}, and a choice is between "
                "two or more texts"
            )
    return table.columns[columns[0]]


def choice_numbers(
    table: Table, column: str, choices: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """The right choices: int32 [N], and float32 [N], 0 where the label is hidden.

    A label is the choice itself, its number from 0, or its letter from A, as RACE has it; -1 and
    nothing hide it. Where choices are numbers or letters themselves, the whole column tells which
    of the two its texts are.

    Raises:
      UserError: a label is none of them, or the column may be read either way.
    """
    numbers = np.zeros(len(table), np.int32)
    if column not in table.columns:
        return numbers, np.zeros(len(table), np.float32)
    known = np.array([label not in _HIDDEN for label in table.columns[column]], np.float32)
    labelled = [
        (row, label, _place_of(label, choices[row]), _index(label, len(choices[row])))
        for row, label in enumerate(table.columns[column])
        if known[row]
    ]
    all_indices = all(index is not None for _, _, _, index in labelled)
    all_choices = all(place is not None for _, _, place, _ in labelled)
    for row, label, place, index in labelled:
        chosen = index if all_indices or place is None else place
        if chosen is None:
            raise UserError(
                f"{table.places[row]} has {label!r} in the column {column!r}, which is none of its "
                f"{len(choices[row])} choices, nor the number of one from 0 to "
                f"{len(choices[row]) - 1}"
            )
        if all_indices and all_choices and place != index:
            raise UserError(
                f"{table.places[row]} has {label!r} in the column {column!r}, which is one of its "
                "choices, and the number or letter of another; give all labels as numbers in JSON "
                "lines"
            )
        numbers[row] = chosen
    return numbers, known


def _place_of(label: Any, choices: Sequence[str]) -> int | None:
    """The number of the choice that a label is, if it is one."""
    return choices.index(label) if label in choices else None


def _index(label: Any, choices: int) -> int | None:
    """The number from 0 that a label is, or whose letter, if there are so many choices."""
    if isinstance(label, str):
        if label.isdecimal():
            label = int(label)
        elif len(label) == 1:
            label = ord(label) - ord("A")
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < choices:
        return label
    return None


def choice_scores(
    model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None = None
) -> jax.Array:
    """Scores the choices of each row.

    Args:
      model: gives one score to each sequence.
      params: its parameters.
      batch: int32 ``token_ids``, ``segment_ids`` [B, C, L] and ``lengths`` [B, C], 0 where a row
        has fewer choices.
      dropout_key: for dropout; None is without.

    Returns:
      float32 [B, C], where there is no choice too low to have any probability.
    """
    scores = apply_model(model, params, one_text_a_row(batch), dropout_key)
    scores_BC = scores.reshape(batch["lengths"].shape)
    return jnp.where(batch["lengths"] > 0, scores_BC, _NO_CHOICE)


def choice_predictions(scores_NC: np.ndarray) -> list[dict[str, Any]]:
    """The number of each row's best choice, from 0, and the probabilities of its choices.

    Args:
      scores_NC: as ``choice_scores`` gives them.
    """
    probabilities_NC = jax.device_get(jax.nn.softmax(scores_NC, axis=-1))
    return [
        {"prediction": int(row.argmax()), "probabilities": row[scores > _NO_CHOICE].tolist()}
        for scores, row in zip(scores_NC, probabilities_NC, strict=True)
    ]
