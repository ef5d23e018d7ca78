"""What a checkpoint holds beside its arrays, so that its model is usable without its run."""

from collections.abc import Mapping

from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.models.description import ModelDescription

DESCRIPTION = "model.json"
VOCABULARY = "tokenizer.json"


def model_assets(description: ModelDescription, tokenizer: WordPieceTokenizer) -> dict[str, str]:
    """The texts, by name, that say what a model is and how it reads."""
    return {DESCRIPTION: description.to_json(), VOCABULARY: tokenizer.to_json()}


def description_in(assets: Mapping[str, str]) -> ModelDescription | None:
    """What the model is; None where a checkpoint has none of ours."""
    return ModelDescription.from_json(assets[DESCRIPTION]) if DESCRIPTION in assets else None


def tokenizer_in(assets: Mapping[str, str]) -> WordPieceTokenizer | None:
    """The vocabulary; None where a checkpoint has none."""
    return WordPieceTokenizer.from_json(assets[VOCABULARY]) if VOCABULARY in assets else None
