"""Starts a model from the parameters of another.

Shapes: N new words, P pieces of a word.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.errors import UserError
from bert_jax.models.adaptation import added_by_adaptation
from bert_jax.training.checkpoints import VOCABULARY_TABLES
from bert_jax.training.sharding import parameter_name


def transplant(fresh: Any, source: Any, origin: str) -> tuple[Any, list[str]]:
    """Takes over every parameter that both trees have.

    Heads may be missing or of another shape, since a new task brings its own; the encoder may not.

    Args:
      fresh: freshly initialised parameters, where they will live.
      source: the parameters to take.
      origin: where those came from, for messages.

    Returns:
      The new parameters, laid out like ``fresh``; and a sentence each about the parameters that
      keep their random values, and about those of ``source`` that found no use.

    Raises:
      UserError: the encoders differ.
    """
    theirs = _by_name(source)
    kept: list[str] = []
    used: set[str] = set()

    def take(path: tuple[Any, ...], mine: jax.Array) -> jax.Array:
        name = parameter_name(path)
        found = theirs.get(name)
        if found is not None and found.shape == mine.shape:
            used.add(name)
            return jax.device_put(found, mine.sharding)
        if name.startswith("encoder/") and not added_by_adaptation(tuple(name.split("/"))):
            shape = "absent" if found is None else "×".join(map(str, found.shape))
            raise UserError(
                f"init_from={origin!r} has another architecture: {name} is {shape} there and "
                f"{'×'.join(map(str, mine.shape))} here; give the model's size as it is there"
            )
        kept.append(name)
        return mine

    params = jax.tree_util.tree_map_with_path(take, fresh)
    notes = []
    if kept:
        notes.append(f"not in {origin}, so initialised: {', '.join(_heads(kept))}")
    if unused := theirs.keys() - used - set(kept):
        notes.append(f"in {origin} and not used: {', '.join(_heads(sorted(unused)))}")
    return params, notes


def extend_vocabulary(params: Any, tokens: int, pieces: Sequence[Sequence[int]], rows: int) -> Any:
    """Gives the tables over the vocabulary rows for new words, and as much padding as wanted.

    A new word's row, and its bias where masked tokens are predicted, is the mean of its pieces', so
    that its logit is the mean of theirs. Random rows would draw probability from every token
    at first (Hewitt, 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Args:
      params: a model's parameters.
      tokens: how many tokens they are for; whatever rows stand after those are dropped.
      pieces: of each new word, the tokens that it was read as; at least one.
      rows: how many the new tables have, padding (zeros) included.
    """
    weights_NP = np.zeros((len(pieces), max(map(len, pieces), default=1)), np.float32)
    pieces_NP = np.zeros(weights_NP.shape, np.int32)
    for word, ids in enumerate(pieces):
        pieces_NP[word, : len(ids)] = ids
        weights_NP[word, : len(ids)] = 1 / len(ids)

    def extend(path: tuple[Any, ...], table: jax.Array) -> jax.Array:
        if not parameter_name(path).endswith(VOCABULARY_TABLES):
            return table
        new = jnp.einsum("NP,NP...->N...", weights_NP, table[pieces_NP], precision="highest")
        padding = jnp.zeros((rows - tokens - len(pieces), *table.shape[1:]), table.dtype)
        return jnp.concatenate([table[:tokens], new.astype(table.dtype), padding])

    return jax.tree_util.tree_map_with_path(extend, params)


def _by_name(tree: Any) -> Mapping[str, jax.Array]:
    return {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _heads(names: list[str]) -> list[str]:
    """Whole heads by their first name, so that a line stays a line."""

    def shown(name: str) -> str:
        if added_by_adaptation(tuple(name.split("/"))):
            return "what adapts the encoder"
        return name if name.startswith("encoder/") else name.partition("/")[0]

    return list(dict.fromkeys(map(shown, names)))
