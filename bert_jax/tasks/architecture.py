"""The shape of the encoder that a task begins with."""

import dataclasses

import ml_collections

from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig, size_shape
from bert_jax.tasks.base import Start
from bert_jax.training.assets import description_in


def encoder_shape(
    config: ml_collections.ConfigDict, start: Start, tokenizer: WordPieceTokenizer
) -> BertConfig:
    """The encoder's shape: that of the start, but for what the config sets.

    Args:
      config: ``model``, and in some recipes ``size``; what ``model`` leaves open (None) is filled
        in, so that the run's config says what was trained.
      start: what the task begins with.
      tokenizer: the vocabulary of an encoder with random weights.

    Raises:
      UserError: neither the config nor the start says what the encoder is.
    """
    size = config.get("size", "")
    shape = size_shape(size) if size else {}
    given = shape | {key: value for key, value in config.model.items() if value is not None}
    described = description_in(start.assets)
    if described is not None:
        encoder = dataclasses.replace(described.config, **given)
    else:
        if not all(name in given for name in ("layers", "width", "heads", "feed_forward_width")):
            if "size" not in config:
                raise UserError(
                    "there is no encoder to start from; give --config.init_from=DIRECTORY (a run, "
                    "or a Hugging Face model)"
                )
            raise UserError(
                "an encoder with random weights needs a size; set --config.size=mini (or another), "
                "or give --config.init_from=DIRECTORY"
            )
        encoder = BertConfig(vocabulary_size=tokenizer.size, **given)
    for key in config.model:
        config.model[key] = getattr(encoder, key)
    return encoder
