"""The files by which ``transformers`` knows how BERT's text becomes tokens, both ways."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from bert_jax.data.tokenizer import CLS, MASK, PAD, SEP, SPECIAL_TOKENS, UNKNOWN, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.formats.json_file import read_object, write_json

_MODEL_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_VOCABULARY = "vocab.txt"
_LINE_BREAKS = frozenset("\n\r")
_UNLIMITED = 10**9  # tokens: more than any model reads
_SPECIAL = {
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "cls_token": CLS,
    "sep_token": SEP,
    "mask_token": MASK,
}
# What BERT's tokenizer can be told otherwise, and is not here.
_FIXED = {
    "tokenize_chinese_chars": True,
    "do_basic_tokenize": True,
    "word_tokenizer_type": "basic",  # Japanese models have others, which need dictionaries
    "subword_tokenizer_type": "wordpiece",
    "truncation_side": "right",
} | _SPECIAL
# These do all that their ``tokenizer.json`` says, and nothing that BERT's class would.
_FROM_FILE_ALONE = ("PreTrainedTokenizerFast", "TokenizersBackend")
# The classes that read ``vocab.txt`` as BERT does.
_CLASSES = (
    "BertTokenizer",
    "BertTokenizerFast",
    "DistilBertTokenizer",
    "DistilBertTokenizerFast",
    "ElectraTokenizer",
    "ElectraTokenizerFast",
    *_FROM_FILE_ALONE,
)


def read_tokenizer(directory: Path) -> tuple[WordPieceTokenizer, list[str]]:
    """Reads ``tokenizer.json`` or ``vocab.txt``, as ``tokenizer_config.json`` says.

    Returns:
      The tokenizer, and a sentence for each thing about it that does not pass over.

    Raises:
      UserError: there is no vocabulary, or it is read otherwise than BERT's.
    """
    path = next(
        (directory / n for n in (_TOKENIZER, _VOCABULARY) if (directory / n).is_file()), None
    )
    if path is None:
        raise UserError(f"{directory} has no vocabulary; it needs {_TOKENIZER} or {_VOCABULARY}")
    settings = _read_settings(directory)
    _check_settings(directory, settings)
    kind = settings.get("tokenizer_class")
    if path.name == _VOCABULARY and kind is not None and kind not in _CLASSES:
        raise UserError(
            f"{directory} is read by the tokenizer {kind}, and only BERT's can be converted"
        )
    tokenizer = WordPieceTokenizer.from_file(path)
    added = _added_tokens(directory, settings) - set(SPECIAL_TOKENS)
    notes = [f"the added token {token!r} is read as ordinary text" for token in sorted(added)]
    if path.name == _TOKENIZER and kind in _FROM_FILE_ALONE:
        _check_frame(path, tokenizer)
        return tokenizer, notes
    lowercase = settings.get("do_lower_case")
    if lowercase is None:
        lowercase = tokenizer.lowercase
        if path.name == _TOKENIZER and not lowercase:
            notes.append(
                f"{_TOKENIZER} keeps capitals and {_SETTINGS} has no do_lower_case, so that "
                "transformers would lower-case; capitals are kept here"
            )
    if settings.get("strip_accents") not in (None, lowercase):
        raise UserError(
            f"{directory / _SETTINGS} lower-cases without stripping accents, or the reverse, which "
            "BERT's tokenizer here does not"
        )
    if lowercase != tokenizer.lowercase:  # transformers too believes tokenizer_config.json
        tokenizer = WordPieceTokenizer(tokenizer.vocabulary, lowercase=lowercase, origin=str(path))
    return tokenizer, notes


def read_max_length(directory: Path) -> int | None:
    """The longest input that ``tokenizer_config.json`` allows; None where it does not say.

    Raises:
      UserError: it is no number.
    """
    # Where nothing limits it, transformers writes a number of thirty digits.
    length = _read_settings(directory).get("model_max_length")
    if length is None:
        return None
    if type(length) not in (int, float) or not length >= 1:
        raise UserError(
            f"{directory / _SETTINGS} has model_max_length={length!r}; make it a whole number of "
            "tokens"
        )
    return int(min(length, _UNLIMITED))


def _read_settings(directory: Path) -> dict[str, Any]:
    paths = (directory / name for name in (_MODEL_CONFIG, _SETTINGS))
    model, tokenizer = (read_object(path) if path.is_file() else {} for path in paths)
    # Some directories name the class beside the model alone.
    return {"tokenizer_class": model.get("tokenizer_class")} | tokenizer


def _check_settings(directory: Path, settings: dict[str, Any]) -> None:
    for key, wanted in _FIXED.items():
        found = settings.get(key)
        if isinstance(found, dict):  # how older versions wrote special tokens
            found = found.get("content")
        if found not in (None, wanted):
            raise UserError(
                f"{directory / _SETTINGS} has {key}={found!r}, which BERT's tokenizer here does "
                f"not know; only {key}={wanted!r} can be converted"
            )
    lowercase = settings.get("do_lower_case")
    if lowercase not in (None, True, False):
        raise UserError(
            f"{directory / _SETTINGS} has do_lower_case={lowercase!r}; make it true or false"
        )


def _check_frame(path: Path, tokenizer: WordPieceTokenizer) -> None:
    """Refuses a ``tokenizer.json`` that does not put texts between [CLS] and [SEP]."""
    framed = tokenizers.Tokenizer.from_file(str(path)).encode("").ids
    if framed != [tokenizer.cls_id, tokenizer.sep_id]:
        raise UserError(
            f"{path} does not put a text between {CLS} and {SEP}, which BERT here does; add the "
            "post_processor that its model was trained with"
        )


def _added_tokens(directory: Path, settings: dict[str, Any]) -> set[str]:
    decoder = settings.get("added_tokens_decoder") or {}
    tokens = list(decoder.values()) if isinstance(decoder, dict) else [decoder]
    contents = [token.get("content") if isinstance(token, dict) else None for token in tokens]
    if not all(isinstance(content, str) for content in contents):
        raise UserError(
            f"{directory / _SETTINGS} has an added_tokens_decoder that does not give the content "
            "of each token; correct it"
        )
    if (directory / _TOKENIZER).is_file():
        of_tokenizer = read_object(directory / _TOKENIZER).get("added_tokens") or []
        contents += [token["content"] for token in of_tokenizer]
    path = directory / "added_tokens.json"
    return {*contents, *(read_object(path) if path.is_file() else ())}


def write_tokenizer(directory: Path, tokenizer: WordPieceTokenizer, max_length: int) -> None:
    """Writes what ``AutoTokenizer`` loads.

    Args:
      directory: exists.
      tokenizer: the vocabulary.
      max_length: the longest input, special tokens included.

    Raises:
      UserError: a token has a line break, which ``vocab.txt`` would number as two.
    """
    broken = [token for token in tokenizer.vocabulary if not _LINE_BREAKS.isdisjoint(token)]
    if broken:
        raise UserError(
            f"the vocabulary's token {broken[0]!r} has a line break, which {_VOCABULARY} cannot "
            "hold; name it otherwise in the model's own vocabulary"
        )
    (directory / _TOKENIZER).write_text(_tokenizer_json(tokenizer), encoding="utf-8")
    (directory / _VOCABULARY).write_text(
        "".join(f"{token}\n" for token in tokenizer.vocabulary), encoding="utf-8", newline="\n"
    )
    write_json(
        directory / _SETTINGS,
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": tokenizer.lowercase,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "model_max_length": max_length,
        }
        | _SPECIAL,
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
