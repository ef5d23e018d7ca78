"""The files by which ``sentence-transformers`` knows how embeddings are made, both ways.

``modules.json`` lists what the text runs through: the transformer, pooling, and where embeddings
have length 1, normalisation.
"""

from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.errors import UserError
from bert_jax.formats.json_file import read_json, read_object, write_json
from bert_jax.models.description import ModelDescription, Pooling

_MODULES = "modules.json"
_TRANSFORMER_CONFIG = "sentence_bert_config.json"
_MODEL_CONFIG = "config_sentence_transformers.json"
_POOLING_DIRECTORY = "1_Pooling"
_NORMALIZE_DIRECTORY = "2_Normalize"
# Each has a switch of its own in the configuration of the pooling.
_POOLING_MODES = {Pooling.MEAN: "pooling_mode_mean_tokens", Pooling.CLS: "pooling_mode_cls_token"}


class Layout(NamedTuple):
    """How a directory makes embeddings.

    Attributes:
      transformer: the directory with the model's own files.
      pooling: how hidden states become one vector.
      normalize: whether it is scaled to length 1.
      max_length: the longest input, special tokens included; None where nothing says.
      lowercases: whether texts are lower-cased before the tokenizer has them.
    """

    transformer: Path
    pooling: Pooling
    normalize: bool
    max_length: int | None
    lowercases: bool


def read_layout(directory: Path) -> Layout | None:
    """What ``modules.json`` says; None in a directory without it.

    Raises:
      UserError: it asks for something that ``encode`` does not compute.
    """
    if not (directory / _MODULES).is_file():
        return None
    modules = read_json(directory / _MODULES)
    try:
        paths = {entry["type"].rpartition(".")[2]: directory / entry["path"] for entry in modules}
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{directory / _MODULES} lists no modules; copy it again") from None
    unknown = paths.keys() - {"Transformer", "Pooling", "Normalize"}
    if unknown or not {"Transformer", "Pooling"} <= paths.keys():
        raise UserError(
            f"{directory / _MODULES} has the modules {', '.join(paths)}, and embeddings here are "
            "made by Transformer, Pooling and Normalize; remove the file to convert the encoder "
            "alone"
        )
    _check_model_config(directory / _MODEL_CONFIG)
    fields = read_object(paths["Pooling"] / "config.json")
    transformer = paths["Transformer"] / _TRANSFORMER_CONFIG
    settings = read_object(transformer) if transformer.is_file() else {}
    max_length = settings.get("max_seq_length")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise UserError(
            f"{transformer} has max_seq_length={max_length!r}; make it a whole number of tokens"
        )
    return Layout(
        paths["Transformer"],
        _read_pooling(fields, paths["Pooling"] / "config.json"),
        "Normalize" in paths,
        max_length,
        bool(settings.get("do_lower_case")),
    )


def _check_model_config(path: Path) -> None:
    """Refuses what changes embeddings before or after the modules."""
    fields = read_object(path) if path.is_file() else {}
    prompts, name = fields.get("prompts") or {}, fields.get("default_prompt_name")
    known = isinstance(prompts, dict) and isinstance(name, str)
    is_used = bool(prompts.get(name)) if known else name is not None
    changes = {
        "truncate_dim": fields.get("truncate_dim"),
        "default_prompt_name": name if is_used else None,
    }
    for key, value in changes.items():
        if value is not None:
            raise UserError(
                f"{path} has {key}={value!r}, which is not done here; remove the key to have "
                "embeddings without it"
            )


def _read_pooling(fields: dict[str, Any], path: Path) -> Pooling:
    modes = [name for name, value in fields.items() if name.startswith("pooling_mode_") and value]
    modes = modes or [str(fields.get("pooling_mode", ""))]
    for pooling, name in _POOLING_MODES.items():
        if modes in ([name], [pooling.value]):
            return pooling
    raise UserError(
        f"{path} asks for the pooling {', '.join(modes)}, and only "
        f"{', '.join(_POOLING_MODES.values())} can be converted; remove {_MODULES} to convert the "
        "encoder alone"
    )


def write_layout(directory: Path, description: ModelDescription) -> None:
    """Adds to a Hugging Face directory what makes it one of ``sentence-transformers``."""
    types = {"": "Transformer", _POOLING_DIRECTORY: "Pooling"}
    if description.normalize:
        types[_NORMALIZE_DIRECTORY] = "Normalize"
    write_json(
        directory / _MODULES,
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(types.items())
        ],
    )
    transformer: dict[str, Any] = {"max_seq_length": description.max_length, "do_lower_case": False}
    if not description.pooler:
        transformer["model_args"] = {"add_pooling_layer": False}
    write_json(directory / _TRANSFORMER_CONFIG, transformer)
    for path in types:
        (directory / path).mkdir(exist_ok=True)
    write_json(
        directory / _POOLING_DIRECTORY / "config.json",
        {"word_embedding_dimension": description.config.width}
        | {name: pooling is description.pooling for pooling, name in _POOLING_MODES.items()},
    )
