"""The model card (``README.md``) of an exported model, made from what its run left."""

import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

import jinja2

from bert_jax.formats.hugging_face_config import architecture
from bert_jax.models.description import Head, ModelDescription
from bert_jax.training.checkpoints import RunRecord

# What the Hub calls the tasks; a card without one of these has no widget.
_PIPELINES: Mapping[Head, str] = {
    Head.NONE: "feature-extraction",
    Head.PRETRAINING: "fill-mask",
    Head.CLASSIFICATION: "text-classification",
    Head.MULTI_LABEL: "text-classification",
    Head.REGRESSION: "text-classification",
    Head.TAGGING: "token-classification",
    Head.QUESTION_ANSWERING: "question-answering",
    Head.CHOICE: "multiple-choice",
}
# The others' pipelines are gone from `transformers` 5, or warn of a head that they do not use.
_WITH_PIPELINE = {
    "BertModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
}
# Of what a run ran on, that which its numbers may depend on.
_ENVIRONMENT = ("jax", "flax", "device", "devices", "commit")


def model_card(
    name: str,
    description: ModelDescription,
    parameters: int,
    *,
    record: RunRecord | None = None,
    scored_at: int | None = None,
    scores: Mapping[str, float] | None = None,
    for_sentences: bool = False,
) -> str:
    """Writes the card.

    Args:
      name: of the model; its title.
      description: the model.
      parameters: how many numbers it has.
      record: what the checkpoint says of its run, where there was one.
      scored_at: the step of the run's last validation.
      scores: that, metric by metric.
      for_sentences: whether the directory is one of ``sentence-transformers``.

    Returns:
      Markdown, with the metadata that Hugging Face's Hub reads at its head.
    """
    template = importlib.resources.files(__package__).joinpath("model_card.md.jinja").read_text()
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    # Left to itself, `transformers` would initialise one, and warn of it.
    lacks_pooler = description.head is Head.NONE and not description.pooler
    pipeline = "sentence-similarity" if for_sentences else _PIPELINES[description.head]
    return environment.from_string(template).render(
        name=name,
        description=description,
        config=description.config,
        architecture=architecture(description),
        has_pipeline=architecture(description) in _WITH_PIPELINE and not lacks_pooler,
        lacks_pooler=lacks_pooler,
        parameters=parameters,
        pipeline=pipeline,
        for_sentences=for_sentences,
        record=record,
        facts=_facts(record) if record else {},
        scored_at=scored_at,
        scores=scores or {},
        settings=json.dumps(record.config, indent=2) if record else "",
    )


def _facts(record: RunRecord) -> dict[str, Any]:
    """The lines of the card's table: what was done, by what the data are known, and where."""
    settings = ("task", "source", "corpus", "init_from", "batch_size")
    facts = {key: record.config[key] for key in settings if record.config.get(key)}
    data = record.config.get("data", {})
    if trained_on := ", ".join(filter(None, (data.get("tfds"), data.get("train")))):
        facts["training data"] = trained_on
    if record.step:
        facts["steps"] = f"{record.step:,}"
    facts |= {f"data: {name}": value for name, value in record.identity.items()}
    return facts | {
        name: record.environment[name] for name in _ENVIRONMENT if name in record.environment
    }
