"""Filling in masked tokens: what ``predict fill-mask`` answers and what a report shows.

Shapes: B batch, L length, M masked positions, V vocabulary (padded).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bert_jax.data.tokenizer import UNKNOWN, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.training.processes import to_host
from bert_jax.training.report import SamplePrediction

# Of a validation row with many masks, a reader takes in one; around it, about a line of text.
_CONTEXT_TOKENS = 16
_GUESSES = 5


class Filling(NamedTuple):
    """Candidates for one ``[MASK]``, best first: tokens and their probabilities."""

    tokens: list[str]
    probabilities: list[float]


@partial(jax.jit, static_argnames=("model", "guesses"))
def _best(
    model: nn.Module, params: Any, batch: Mapping[str, jax.Array], guesses: int
) -> tuple[jax.Array, jax.Array]:
    logits_BMV, _ = model.apply(
        {"params": params},
        batch["token_ids"],
        batch["segment_ids"],
        batch["lengths"],
        batch["masked_positions"],
        deterministic=True,
    )
    return jax.lax.top_k(jax.nn.softmax(logits_BMV, axis=-1), guesses)


def fill_masks(
    model: nn.Module,
    params: Any,
    tokenizer: WordPieceTokenizer,
    text: str,
    guesses: int = _GUESSES,
    *,
    max_length: int,
) -> list[Filling]:
    """Fills in every ``[MASK]`` of a text.

    Args:
      model: a model with a masked-language-model head.
      params: its parameters.
      tokenizer: its vocabulary.
      text: holds at least one ``[MASK]``.
      guesses: how many candidates to give for each.
      max_length: the most tokens that the model reads.

    Returns:
      One Filling for each ``[MASK]``, in the order of the text.

    Raises:
      UserError: there is no ``[MASK]``, or the text is longer than the model's positions.
    """
    ids = [tokenizer.cls_id, *tokenizer.encode_with_masks(text), tokenizer.sep_id]
    positions = [place for place, token in enumerate(ids) if token == tokenizer.mask_id]
    if not positions:
        raise UserError(f"{text!r} has no [MASK] to fill in; write one where a word is missing")
    if len(ids) > max_length:
        raise UserError(
            f"the text has {len(ids)} tokens, and the model reads at most {max_length}; shorten it"
        )
    # Few shapes, so that a stream of texts compiles a few times only.
    length = min(max_length, max(16, 1 << (len(ids) - 1).bit_length()))
    places = 1 << (len(positions) - 1).bit_length()
    batch = {
        "token_ids": np.zeros((1, length), np.int32),
        "segment_ids": np.zeros((1, length), np.int32),
        "lengths": np.array([len(ids)], np.int32),
        "masked_positions": np.zeros((1, places), np.int32),
    }
    batch["token_ids"][0, : len(ids)] = ids
    batch["masked_positions"][0, : len(positions)] = positions
    probabilities, tokens = jax.device_get(_best(model, params, batch, guesses))
    return [
        Filling([_name(tokenizer, token) for token in tokens[0, m]], probabilities[0, m].tolist())
        for m in range(len(positions))
    ]


def _name(tokenizer: WordPieceTokenizer, token: int) -> str:
    # A model that came from elsewhere may have more embeddings than its vocabulary has tokens.
    return tokenizer.vocabulary[token] if token < tokenizer.size else UNKNOWN


def sample_predictions(
    model: nn.Module,
    params: Any,
    tokenizer: WordPieceTokenizer,
    batch: Mapping[str, np.ndarray],
) -> Sequence[SamplePrediction]:
    """What the model would fill in for one masked position of each row of a batch.

    The position is the middle one of those shown as ``[MASK]``. The text around it is given as it
    was; the model saw the row's other masks too.
    """
    inputs = {
        name: jnp.asarray(batch[name])
        for name in ("token_ids", "segment_ids", "lengths", "masked_positions")
    }
    probabilities, guesses = to_host(_best(model, params, inputs, _GUESSES))
    samples = []
    for row, tokens in enumerate(batch["token_ids"]):
        positions = batch["masked_positions"][row]
        shown = np.flatnonzero(
            (tokens[positions] == tokenizer.mask_id) & (batch["masked_weights"][row] > 0)
        )
        if not shown.size:
            continue
        place = shown[len(shown) // 2]
        position = positions[place]
        original = tokens.copy()
        used = batch["masked_weights"][row] > 0
        original[positions[used]] = batch["masked_labels"][row, used]
        original[position] = tokenizer.mask_id
        context = original[max(1, position - _CONTEXT_TOKENS) : position + _CONTEXT_TOKENS + 1]
        samples.append(
            SamplePrediction(
                text=tokenizer.decode(context[context != tokenizer.pad_id]),
                answer=tokenizer.vocabulary[batch["masked_labels"][row, place]],
                guesses=[
                    (_name(tokenizer, token), float(probability))
                    for token, probability in zip(
                        guesses[row, place], probabilities[row, place], strict=True
                    )
                ],
            )
        )
    return samples
