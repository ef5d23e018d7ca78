"""Directories as ``transformers`` and ``sentence-transformers`` keep models, both ways."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import tokenizers

from bert_jax.data.tokenizer import CLS, MASK, PAD, SEP, SPECIAL_TOKENS, UNKNOWN, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.formats.hugging_face_config import read_description, write_config
from bert_jax.formats.json_file import read_object, write_json
from bert_jax.formats.naming import ENCODER_PREFIX, canonical, to_params, to_tensors
from bert_jax.formats.sentence_transformers import read_layout, write_layout
from bert_jax.formats.tensor_files import SAFETENSORS, read_tensors
from bert_jax.models.description import Head, ModelDescription

CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_VOCABULARY = "vocab.txt"
_CARD = "README.md"
_UNLIMITED = 10**9  # tokens: more than any model reads
# What BERT's tokenizer can be told otherwise, and is not here.
_TOKENIZER_DEFAULTS = {
    "tokenize_chinese_chars": True,
    "do_basic_tokenize": True,
    "word_tokenizer_type": "basic",  # Japanese models have others, which need dictionaries
    "subword_tokenizer_type": "wordpiece",
    "truncation_side": "right",
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "cls_token": CLS,
    "sep_token": SEP,
    "mask_token": MASK,
}
# These do all that their ``tokenizer.json`` says, and nothing that BERT's class would.
_FROM_FILE_ALONE = ("PreTrainedTokenizerFast", "TokenizersBackend")
# The classes that read ``vocab.txt`` as BERT does.
_TOKENIZER_CLASSES = (
    "BertTokenizer",
    "BertTokenizerFast",
    "DistilBertTokenizer",
    "DistilBertTokenizerFast",
    "ElectraTokenizer",
    "ElectraTokenizerFast",
    *_FROM_FILE_ALONE,
)


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
    lengths = [model.description.max_length, _max_length(directory)]
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


def read_tokenizer(directory: Path) -> tuple[WordPieceTokenizer, list[str]]:
    """Reads ``tokenizer.json`` or ``vocab.txt``, as ``tokenizer_config.json`` says.

    Returns:
      The tokenizer, and a sentence for each thing about it that does not pass over.

    Raises:
      UserError: there is no vocabulary, or it is read otherwise than BERT's.
    """
    settings = _tokenizer_settings(directory)
    path = next(
        (directory / n for n in (_TOKENIZER, _VOCABULARY) if (directory / n).is_file()), None
    )
    if path is None:
        raise UserError(f"{directory} has no vocabulary; it needs {_TOKENIZER} or {_VOCABULARY}")
    for key, wanted in _TOKENIZER_DEFAULTS.items():
        found = settings.get(key, wanted)
        if isinstance(found, dict):  # how older versions wrote special tokens
            found = found.get("content")
        if found != wanted:
            raise UserError(
                f"{directory / _TOKENIZER_CONFIG} has {key}={found!r}, which BERT's "
                f"tokenizer here does not know; only {key}={wanted!r} can be converted"
            )
    kind = settings.get("tokenizer_class")
    if path.name == _VOCABULARY and kind is not None and kind not in _TOKENIZER_CLASSES:
        raise UserError(
            f"{directory} is read by the tokenizer {kind}, and only BERT's can be converted"
        )
    tokenizer = WordPieceTokenizer.from_file(path)
    notes = []
    lowercase = settings.get("do_lower_case")
    if lowercase not in (None, True, False):
        raise UserError(
            f"{directory / _TOKENIZER_CONFIG} has do_lower_case={lowercase!r}; make it true or "
            "false"
        )
    if path.name == _TOKENIZER and kind in _FROM_FILE_ALONE:
        lowercase = tokenizer.lowercase
        _check_frame(path, tokenizer)
    elif lowercase is None:
        lowercase = tokenizer.lowercase
        if path.name == _TOKENIZER and not lowercase:
            notes.append(
                f"{_TOKENIZER} keeps capitals and {_TOKENIZER_CONFIG} has no do_lower_case, so "
                "that transformers would lower-case; capitals are kept here"
            )
    if settings.get("strip_accents") not in (None, lowercase):
        raise UserError(
            f"{directory / _TOKENIZER_CONFIG} lower-cases without stripping accents, or the "
            "reverse, which BERT's tokenizer here does not"
        )
    if lowercase != tokenizer.lowercase:  # transformers too believes tokenizer_config.json
        tokenizer = WordPieceTokenizer(tokenizer.vocabulary, lowercase=lowercase, origin=str(path))
    added = _added_tokens(directory, settings) - set(SPECIAL_TOKENS)
    notes += [f"the added token {token!r} is read as ordinary text" for token in sorted(added)]
    return tokenizer, notes


def _check_frame(path: Path, tokenizer: WordPieceTokenizer) -> None:
    """Refuses a ``tokenizer.json`` that does not put texts between [CLS] and [SEP]."""
    framed = tokenizers.Tokenizer.from_file(str(path)).encode("").ids
    if framed != [tokenizer.cls_id, tokenizer.sep_id]:
        raise UserError(
            f"{path} does not put a text between {CLS} and {SEP}, which BERT here does; add the "
            "post_processor that its model was trained with"
        )


def _tokenizer_settings(directory: Path) -> dict[str, Any]:
    paths = (directory / name for name in (CONFIG, _TOKENIZER_CONFIG))
    model, tokenizer = (read_object(path) if path.is_file() else {} for path in paths)
    # Some directories name the class beside the model alone.
    return {"tokenizer_class": model.get("tokenizer_class")} | tokenizer


def _added_tokens(directory: Path, settings: dict[str, Any]) -> set[str]:
    added = list((settings.get("added_tokens_decoder") or {}).values())
    if (directory / _TOKENIZER).is_file():
        added += read_object(directory / _TOKENIZER).get("added_tokens") or []
    path = directory / "added_tokens.json"
    of_file = set(read_object(path)) if path.is_file() else set()
    return of_file | {token["content"] for token in added}


def _max_length(directory: Path) -> int | None:
    # Where nothing limits it, transformers writes a number of thirty digits.
    length = _tokenizer_settings(directory).get("model_max_length")
    if length is None:
        return None
    if type(length) not in (int, float) or not length >= 1:
        raise UserError(
            f"{directory / _TOKENIZER_CONFIG} has model_max_length={length!r}; make it a whole "
            "number of tokens"
        )
    return int(min(length, _UNLIMITED))


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
    (directory / _TOKENIZER).write_text(_tokenizer_json(tokenizer), encoding="utf-8")
    (directory / _VOCABULARY).write_text(
        "".join(f"{token}\n" for token in tokenizer.vocabulary), encoding="utf-8", newline="\n"
    )
    write_json(
        directory / _TOKENIZER_CONFIG,
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": tokenizer.lowercase,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "model_max_length": description.max_length,
            "pad_token": PAD,
            "unk_token": UNKNOWN,
            "cls_token": CLS,
            "sep_token": SEP,
            "mask_token": MASK,
        },
    )


def _tokenizer_json(tokenizer: WordPieceTokenizer) -> str:
    """The ``tokenizer.json`` of a checkpoint, and how [CLS] and [SEP] go around texts and pairs."""
    fields = json.loads(tokenizer.to_json())
    fields["post_processor"] = {
        "type": "BertProcessing",
        "cls": [CLS, tokenizer.cls_id],
        "sep": [SEP, tokenizer.sep_id],
    }
    return json.dumps(fields, ensure_ascii=False, indent=1)
