"""Rows that hold several sequences, one after the other: which one a position is of.

Such rows have lengths int32 [B, Q], of up to Q sequences each, where rows of one sequence have
[B]; unused places have length 0. Sequences do not attend to each other, and each has positions of
its own.

Shapes: B batch, L length, Q sequences of a row, D model width.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def is_packed(lengths: Array) -> bool:
    """Whether lengths are those of rows that hold several sequences."""
    return lengths.ndim == 2


def sequence_numbers(lengths_BQ: Array, length: int) -> Array:
    """The sequence that each position is of, counted within its row; Q at padding: int32 [B, L]."""
    ends_B1Q = jnp.cumsum(lengths_BQ, axis=1)[:, None]
    return jnp.sum(jnp.arange(length)[:, None] >= ends_B1Q, axis=-1, dtype=jnp.int32)


def first_positions(lengths: Array, length: int) -> Array:
    """Where in its row of a length each sequence begins: int32 [B, Q]; unused ones anywhere.

    [B, 1] where a row is one sequence.
    """
    if not is_packed(lengths):
        return jnp.zeros((len(lengths), 1), jnp.int32)
    return jnp.minimum(jnp.cumsum(lengths, axis=1) - lengths, length - 1)


def positions_within(lengths_BQ: Array, length: int) -> Array:
    """How far each position is from the start of its sequence, or of the padding: int32 [B, L]."""
    numbers_BL = sequence_numbers(lengths_BQ, length)
    ends_BQ = jnp.cumsum(lengths_BQ, axis=1)
    starts_BS = jnp.pad(ends_BQ, ((0, 0), (1, 0)))
    return jnp.arange(length) - jnp.take_along_axis(starts_BS, numbers_BL, axis=1)


def first_states(hidden_BLD: Array, lengths: Array) -> Array:
    """The hidden states at the first position of each row [B, D], or of each sequence [B, Q, D]."""
    if not is_packed(lengths):
        return hidden_BLD[:, 0]
    first_BQ = first_positions(lengths, hidden_BLD.shape[1])
    return jnp.take_along_axis(hidden_BLD, first_BQ[..., None], axis=1)
