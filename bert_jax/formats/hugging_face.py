"""Directories as ``transformers`` and ``sentence-transformers`` keep models, both ways."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.formats.hugging_face_config import read_description, write_config
from bert_jax.formats.hugging_face_tokenizer import (
    read_max_length,
    read_tokenizer,
    write_tokenizer,
)
from bert_jax.formats.json_file import read_object, write_json
from bert_jax.formats.naming import ENCODER_PREFIX, canonical, to_params, to_tensors
from bert_jax.formats.sentence_transformers import read_layout, write_layout
from bert_jax.formats.tensor_files import SAFETENSORS, read_tensors
from bert_jax.models.description import Head, ModelDescription

CONFIG = "config.json"
_CARD = "README.md"


class ForeignModel(NamedTuple):
    """A model that another program wrote.

    Attributes:
      description: what the model is.
      params: tree of float32 NumPy arrays, as ``description.model()`` takes it.
      tokenizer: its vocabulary.
      notes: a sentence for everything that was not used, was missing, or does not pass over.
    """

    description: ModelDescription
    params: Any
    tokenizer: WordPieceTokenizer
    notes: tuple[str, ...]


def is_model_directory(path: Path) -> bool:
    """Whether a directory looks like one of Hugging Face's."""
    return any((path / name).is_file() for name in (CONFIG, "modules.json"))


def read_model(directory: Path) -> ForeignModel:
    """Reads a Hugging Face or sentence-transformers directory.

    Raises:
      UserError: it is of another architecture, incomplete, damaged, or would run code.
    """
    layout = read_layout(directory)
    if layout is not None:
        directory = layout.transformer
    fields = read_object(directory / CONFIG)
    # Before the weights: another architecture is better told than that its tensors are unknown.
    model_type = fields.get("model_type", "bert")
    if model_type != "bert":
        raise UserError(f"{directory} is a {model_type} model; only BERT models can be converted")
    tokenizer, tokenizer_notes = read_tokenizer(directory)
    model = build_model(fields, read_tensors(directory), tokenizer, str(directory))
    lengths = [model.description.max_length, read_max_length(directory)]
    description = model.description
    if layout is not None:
        if layout.lowercases and not tokenizer.lowercase:
            raise UserError(
                f"{directory} has do_lower_case=true for sentence-transformers and a tokenizer "
                "that keeps capitals, which is not done here; remove the key if the model was not "
                "trained so"
            )
        lengths.append(layout.max_length)
        description = dataclasses.replace(
            description, pooling=layout.pooling, normalize=layout.normalize
        )
    description = dataclasses.replace(
        description, max_length=min(length for length in lengths if length is not None)
    )
    return model._replace(description=description, notes=(*tokenizer_notes, *model.notes))


def build_model(
    fields: dict[str, Any],
    tensors: dict[str, np.ndarray],
    tokenizer: WordPieceTokenizer,
    origin: str,
) -> ForeignModel:
    """Makes a model of what the files of any format held.

    Args:
      fields: ``config.json``, or google-research/bert's ``bert_config.json``.
      tensors: weights under PyTorch's names, old ones too.
      tokenizer: the vocabulary.
      origin: where all of it came from, for messages.

    Raises:
      UserError: the parts do not fit together, or are of another architecture.
    """
    tensors = canonical(tensors, origin)
    description, notes = read_description(fields, tensors, origin)
    rows = description.config.vocabulary_size
    if tokenizer.size > rows:
        raise UserError(
            f"{origin} has a vocabulary of {tokenizer.size} tokens and embeddings for {rows}; the "
            "two belong to different models"
        )
    if tokenizer.size < rows:
        notes.append(f"the last {rows - tokenizer.size} rows of the word table have no token")
    params, more_notes = to_params(tensors, description, origin)
    return ForeignModel(description, params, tokenizer, (*notes, *more_notes))


def without_heads(
    description: ModelDescription, params: Any, *, keep_mlm: bool = False
) -> tuple[ModelDescription, Any]:
    """A model of fewer heads.

    Args:
      description: the model.
      params: its parameters.
      keep_mlm: leave the masked-language-model head on, and nothing else; otherwise the encoder is
        left, with its pooler where it has one.

    Raises:
      UserError: there is no masked-language-model head to keep.
    """
    if keep_mlm and description.head is not Head.PRETRAINING:
        raise UserError(
            f"the model is one for {description.head} and has no masked-language-model head"
        )
    names = ("encoder", "mlm_head") if keep_mlm else ("encoder", "pooler")
    kept = {name: params[name] for name in names if name in params}
    head = Head.PRETRAINING if keep_mlm else Head.NONE
    return (
        dataclasses.replace(description, head=head, labels=(), pooler="pooler" in kept, options={}),
        kept,
    )


def write_model(
    directory: Path,
    description: ModelDescription,
    params: Any,
    tokenizer: WordPieceTokenizer,
    card: str,
    *,
    for_sentences: bool,
) -> None:
    """Writes a directory that ``AutoModel…``, ``AutoTokenizer`` and ``pipeline`` load.

    Args:
      directory: exists and is empty.
      description: the model.
      params: its parameters.
      tokenizer: its vocabulary.
      card: the model card, Markdown.
      for_sentences: adds what ``sentence-transformers`` needs; the model must have no head.
    """
    write_config_and_tokenizer(directory, description, tokenizer)
    tensors = to_tensors(params, description)
    if description.head is Head.NONE:
        tensors = {name.removeprefix(ENCODER_PREFIX): array for name, array in tensors.items()}
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        directory / SAFETENSORS,
        metadata={"format": "pt"},
    )
    if for_sentences:
        write_layout(directory, description)
    (directory / _CARD).write_text(card, encoding="utf-8")


def write_config_and_tokenizer(
    directory: Path, description: ModelDescription, tokenizer: WordPieceTokenizer
) -> None:
    """Writes all but the weights."""
    write_json(directory / CONFIG, write_config(description) | {"pad_token_id": tokenizer.pad_id})
    write_tokenizer(directory, tokenizer, description.max_length)
