"""``config.json`` of ``transformers`` and the description of a model, each from the other."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_jax.data.file_lines import is_unicode
from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig, default_unroll
from bert_jax.models.description import Head, ModelDescription

# Field of BertConfig: their key, and what it is where a config.json leaves it out.
_FIELDS: Mapping[str, tuple[str, Any]] = {
    "vocabulary_size": ("vocab_size", 30522),
    "layers": ("num_hidden_layers", 12),
    "width": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "feed_forward_width": ("intermediate_size", 3072),
    "max_positions": ("max_position_embeddings", 512),
    "segments": ("type_vocab_size", 2),
    "hidden_dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "layer_norm_epsilon": ("layer_norm_eps", 1e-12),
    "initializer_stddev": ("initializer_range", 0.02),
}
# What decides the computation and has one value here; absent means that value.
_FIXED: Mapping[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_ARCHITECTURES: Mapping[str, Head] = {
    "BertModel": Head.NONE,
    "BertForPreTraining": Head.PRETRAINING,
    "BertForMaskedLM": Head.PRETRAINING,
    "BertForSequenceClassification": Head.CLASSIFICATION,
    "BertForTokenClassification": Head.TAGGING,
    "BertForQuestionAnswering": Head.QUESTION_ANSWERING,
    "BertForMultipleChoice": Head.CHOICE,
}
_PROBLEM_TYPES: Mapping[str, Head] = {
    "single_label_classification": Head.CLASSIFICATION,
    "multi_label_classification": Head.MULTI_LABEL,
    "regression": Head.REGRESSION,
}
_LABELLED = (Head.CLASSIFICATION, Head.MULTI_LABEL, Head.TAGGING)


def read_description(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[ModelDescription, list[str]]:
    """What a ``config.json`` and the tensors beside it describe.

    The class that ``architectures`` names decides which head there is; without it, the tensors do,
    as they do for the pooler of a bare encoder.

    Args:
      fields: the parsed ``config.json`` (or google-research/bert's ``bert_config.json``).
      tensors: the weights under ``naming``'s names.
      origin: where they came from, for messages.

    Returns:
      The description, and a sentence for each setting that does not pass over.

    Raises:
      UserError: it is another architecture, or one that no model here computes.
    """
    for key, wanted in _FIXED.items():
        if (found := fields.get(key, wanted)) != wanted:
            raise UserError(
                f"{origin} has {key}={found!r}, and only BERT models with {key}={wanted!r} can be "
                "converted"
            )
    config = BertConfig(
        **{ours: _number(fields, key, default, origin) for ours, (key, default) in _FIELDS.items()}
    )
    config = dataclasses.replace(config, unroll=default_unroll(config.layers))
    head, pooler = _head(fields, tensors, origin)
    description = ModelDescription(
        config,
        head,
        labels=_labels(fields, head, tensors, origin),
        pooler=pooler,
        max_length=config.max_positions,
    )
    notes = []
    dropout = fields.get("classifier_dropout")
    if dropout is not None and dropout != config.hidden_dropout:
        notes.append(
            f"classifier_dropout={dropout} was not used: heads drop hidden_dropout_prob="
            f"{config.hidden_dropout} here; it matters to further training only"
        )
    return description, notes


def _number(fields: Mapping[str, Any], key: str, default: float, origin: str) -> Any:
    value = fields.get(key, default)
    if type(value) not in ((int,) if isinstance(default, int) else (int, float)):
        raise UserError(f"{origin} has {key}={value!r}, which is no {type(default).__name__}")
    return value


def _head(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[Head, bool]:
    """The head, and whether there is a pooler."""
    architectures = fields.get("architectures") or [None]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str | None):
        raise UserError(f"{origin} has architectures={architectures!r}; make it a list of one name")
    architecture = architectures[0]
    if architecture is not None and architecture not in _ARCHITECTURES:
        raise UserError(
            f"{origin} is a {architecture}, which cannot be converted; those that can are "
            f"{', '.join(_ARCHITECTURES)}"
        )
    head = _head_of_tensors(tensors) if architecture is None else _ARCHITECTURES[architecture]
    if head is Head.CLASSIFICATION:
        head = _classification_head(fields, tensors, origin)
    has_pooler = "bert.pooler.dense.weight" in tensors
    match head:
        case Head.NONE:
            return head, has_pooler
        case Head.PRETRAINING:
            # google-research's own checkpoints say BertForMaskedLM and hold all of both heads.
            has_both = has_pooler and "cls.seq_relationship.weight" in tensors
            return head, has_both or architecture == "BertForPreTraining"
    return head, True


def _head_of_tensors(tensors: Mapping[str, np.ndarray]) -> Head:
    if "cls.predictions.transform.dense.weight" in tensors:
        return Head.PRETRAINING
    if "qa_outputs.weight" in tensors:
        return Head.QUESTION_ANSWERING
    if "classifier.weight" in tensors:
        return Head.CLASSIFICATION if "bert.pooler.dense.weight" in tensors else Head.TAGGING
    return Head.NONE


def _classification_head(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], origin: str
) -> Head:
    outputs = len(_label_names(fields, tensors, origin))
    problem = fields.get("problem_type")
    if problem is None:  # as transformers guesses it
        return Head.REGRESSION if outputs == 1 else Head.CLASSIFICATION
    if not isinstance(problem, str) or problem not in _PROBLEM_TYPES:
        raise UserError(
            f"{origin} has problem_type={problem!r}; use one of {', '.join(_PROBLEM_TYPES)}"
        )
    head = _PROBLEM_TYPES[problem]
    if head is Head.REGRESSION and outputs != 1:
        raise UserError(
            f"{origin} is a regression to {outputs} numbers, and only one number can be converted"
        )
    return head


def _label_names(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[str, ...]:
    names = fields.get("id2label") or {}
    if names:
        # A pair of labels of one name could not be told apart in what is predicted.
        if not isinstance(names, dict) or names.keys() != set(map(str, range(len(names)))):
            raise UserError(
                f"{origin} has in config.json an id2label that does not name outputs 0, 1, 2, "
                "... without gaps; correct it"
            )
        labels = [names[str(number)] for number in range(len(names))]
        are_texts = all(
            isinstance(label, str | int | float) and is_unicode(str(label)) for label in labels
        )
        if not are_texts or len(set(map(str, labels))) < len(labels):
            raise UserError(
                f"{origin} has in config.json an id2label in which labels are alike or no texts: "
                f"{labels!a}; give each output a name of its own"
            )
        return tuple(map(str, labels))
    bias = tensors.get("classifier.bias")
    count = _number(fields, "num_labels", 2, origin) if bias is None else bias.size
    return tuple(f"LABEL_{number}" for number in range(count))


def _labels(
    fields: Mapping[str, Any], head: Head, tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[str, ...]:
    if head not in _LABELLED:
        return ()
    labels = _label_names(fields, tensors, origin)
    outputs = tensors.get("classifier.bias")
    if outputs is not None and outputs.size != len(labels):
        raise UserError(
            f"{origin} names {len(labels)} labels in config.json's id2label, and its classifier "
            f"has {outputs.size} outputs; correct id2label"
        )
    return labels


def architecture(description: ModelDescription) -> str:
    """The name of the class in ``transformers`` that computes a model."""
    match description.head:
        case Head.PRETRAINING:
            return "BertForPreTraining" if description.pooler else "BertForMaskedLM"
        case Head.CLASSIFICATION | Head.MULTI_LABEL | Head.REGRESSION:
            return "BertForSequenceClassification"
        case head:
            return next(name for name, other in _ARCHITECTURES.items() if other is head)


def write_config(description: ModelDescription) -> dict[str, Any]:
    """The ``config.json`` of a description."""
    fields: dict[str, Any] = {
        "architectures": [architecture(description)],
        "model_type": _FIXED["model_type"],
        "hidden_act": _FIXED["hidden_act"],
    }
    fields |= {key: getattr(description.config, ours) for ours, (key, _) in _FIELDS.items()}
    problem_of = {head: problem for problem, head in _PROBLEM_TYPES.items()}
    if description.head in problem_of:
        fields["problem_type"] = problem_of[description.head]
    # Without names, transformers takes one output for two.
    one_output = description.head in (Head.REGRESSION, Head.CHOICE)
    labels = ("LABEL_0",) if one_output else description.labels
    if labels:
        fields["id2label"] = {str(number): label for number, label in enumerate(labels)}
        fields["label2id"] = {label: number for number, label in enumerate(labels)}
    return fields
