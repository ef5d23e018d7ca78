"""Questions about texts: the model marks the piece of the text that answers (SQuAD 1.1 and 2.0).

Shapes: B batch, L length, N windows, 2 a span's start and end.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax.data.question_windows import QuestionWindows, make_windows
from bert_jax.data.questions import Question, read_questions, read_tfds_questions
from bert_jax.errors import UserError
from bert_jax.models.decoder import PADDING_LOGIT
from bert_jax.models.description import Head, ModelDescription
from bert_jax.models.losses import cross_entropy_sum
from bert_jax.tasks.answer_scores import score_v1, score_v2
from bert_jax.tasks.answers import AnswerOptions, Prediction, answer_questions
from bert_jax.tasks.base import NEW, Batch, Start
from bert_jax.tasks.fine_tuning import FineTuning
from bert_jax.tasks.labelled_fine_tuning import token_sum
from bert_jax.tasks.splits import read_examples
from bert_jax.training.metrics import Ratio, Sums

# What the official scripts' keys are called here. The first script has `exact_match` and `f1` only.
_METRICS = {
    "exact_match": "exact_match",
    "exact": "exact_match",
    "f1": "f1",
    "HasAns_exact": "has_answer_exact_match",
    "HasAns_f1": "has_answer_f1",
    "NoAns_exact": "no_answer_exact_match",
    "NoAns_f1": "no_answer_f1",
    "best_exact": "best_exact_match",
    "best_exact_thresh": "best_exact_match_threshold",
    "best_f1": "best_f1",
    "best_f1_thresh": "best_f1_threshold",
}


class QuestionAnswering(FineTuning):
    """The span that answers a question, or, where the recipe allows it, that there is none.

    What the model's predictions need besides, such as the threshold of no answer, is in its
    description. The threshold is the recipe's; evaluations tell which one would have been best.
    """

    losses: Mapping[str, float] = {"loss": 1.0}

    def __init__(self, config: ml_collections.ConfigDict, start: Start = NEW):
        self.options = AnswerOptions(
            can_be_impossible=config.data.can_be_impossible, **config.answers
        )
        super().__init__(config, start)

    def read(self, split: str) -> QuestionWindows:
        """The windows of a split's questions; articles are not divided between the splits."""
        self.encoder.check_pairs()
        data = self.config.data

        def read(name: str) -> list[Question]:
            impossible = data.can_be_impossible
            if data.tfds:
                directory = data.data_dir or None
                return read_tfds_questions(
                    data.tfds, name, can_be_impossible=impossible, data_dir=directory
                )
            return read_questions(Path(name).expanduser(), can_be_impossible=impossible)

        questions = read_examples(data, split, read, lambda found: found.title or found.context)
        windows = make_windows(
            questions,
            self.tokenizer,
            max_length=data.max_length,
            stride=data.stride,
            max_question_length=data.max_question_length,
        )
        if split == "validation":
            if len({question.id for question in questions}) < len(questions):
                raise UserError(
                    f"the files {data.validation} have questions of one id; answers are scored by "
                    "their ids, so rename them"
                )
            self._questions, self._windows = questions, windows
        return windows

    def describe(self) -> ModelDescription:
        """BERT's model for SQuAD."""
        data = self.config.data
        options = {"stride": data.stride, "max_question_length": data.max_question_length}
        return ModelDescription(
            self.encoder,
            Head.QUESTION_ANSWERING,
            max_length=data.max_length,
            options=options | dataclasses.asdict(self.options),
        )

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Cross-entropy of the start and of the end over a row's tokens; both count the same."""
        scores_BL2 = self.apply(params, batch, dropout_key)
        is_real_BL = jnp.arange(scores_BL2.shape[1]) < batch["lengths"][:, None]
        scores_B2L = jnp.swapaxes(jnp.where(is_real_BL[..., None], scores_BL2, PADDING_LOGIT), 1, 2)
        positions_B2 = jnp.stack([batch["start_positions"], batch["end_positions"]], axis=1)
        weights_B2 = jnp.broadcast_to(batch["example_weights"][:, None] / 2, positions_B2.shape)
        loss = cross_entropy_sum(scores_B2L, positions_B2, weights_B2)
        return {"loss": Ratio(*loss), "tokens": token_sum(batch)}

    def outputs(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """The scores of each column as start and as end."""
        scores_BL2 = self.apply(params, batch)
        return {"start": scores_BL2[..., 0], "end": scores_BL2[..., 1]}

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Exact match and F1, in percent, as SQuAD's official scripts count them.

        With questions that have no answer also those of either kind (``has_answer_``,
        ``no_answer_``), and the best that another ``answers.no_answer_threshold`` would give.
        """
        answers = self._answers(outputs)
        if not self.options.can_be_impossible:
            found = score_v1(self._questions, {id: answer.text for id, answer in answers.items()})
        else:
            found = score_v2(
                self._questions,
                {id: answer.span_text for id, answer in answers.items()},
                {id: answer.no_answer_score for id, answer in answers.items()},
                self.options.no_answer_threshold,
            )
        return {name: found[key] for key, name in _METRICS.items() if key in found}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Each question's answer, and the best candidates with their probabilities."""
        answers = self._answers(self.in_order_of_data(outputs))
        return [{"id": id, **answer_to_json(answer)} for id, answer in answers.items()]

    def _answers(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Prediction]:
        """The answers by the questions' ids, from outputs in the order of the data."""
        scores = list(outputs["start"]), list(outputs["end"])
        answers = answer_questions(self._questions, self._windows, *scores, self.options)
        return dict(zip((question.id for question in self._questions), answers, strict=True))


def answer_to_json(answer: Prediction) -> dict[str, Any]:
    """An answer as plain JSON; ``no_answer_score`` is null where the context has no tokens."""
    margin = answer.no_answer_score
    return {
        "prediction": answer.text,
        "no_answer_score": margin if math.isfinite(margin) else None,
        "candidates": [candidate._asdict() for candidate in answer.candidates],
    }
