"""Trees of parameters in two parts: what is trained, and what is frozen.

A mask says which is which: a tree like the parameters of bools, or of bool arrays, to be broadcast,
where a leaf is trained in part. A leaf that is frozen as a whole is taken out of the tree that is
differentiated and optimised: it has no gradient and no moments. A part of a leaf is held in place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

PyTree: TypeAlias = Any
Masking: TypeAlias = Callable[[PyTree], PyTree]  # parameters, real or abstract -> mask


def everything(params: PyTree) -> PyTree:
    """The mask under which all is trained."""
    return jax.tree.map(lambda _: True, params)


def split(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Splits nested dictionaries like the mask into leaves trained at least in part, and frozen."""
    flat, is_trained = flatten_dict(tree), flatten_dict(mask)
    trained = {path: leaf for path, leaf in flat.items() if is_trained[path] is not False}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def trained_part(tree: PyTree, mask: PyTree) -> PyTree:
    """The first of the two trees of `split`."""
    return split(tree, mask)[0]


def join(trained: PyTree, frozen: PyTree) -> PyTree:
    """Undoes `split`."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))


def where_trained(mask: PyTree, trained: PyTree, frozen: PyTree) -> PyTree:
    """Takes elements of one tree where the mask is true and of the other elsewhere, bit for bit.

    All three are trees like the trained part.
    """

    def choose(is_trained: bool | np.ndarray, new: jax.Array, old: jax.Array) -> jax.Array:
        return new if is_trained is True else jnp.where(is_trained, new, old)

    return jax.tree.map(choose, mask, trained, frozen)


class TrainableCount(NamedTuple):
    """How many parameters are trained, of how many."""

    trained: int
    total: int

    @property
    def share(self) -> float:
        """The trained share of all, from 0 to 1."""
        return self.trained / self.total


def count_trainable(params: PyTree, mask: PyTree) -> TrainableCount:
    """Counts parameters, real or abstract, with the padding of vocabulary tables."""

    def count(leaf: Any, is_trained: bool | np.ndarray) -> int:
        return leaf.size // np.size(is_trained) * int(np.sum(is_trained))

    trained = sum(jax.tree.leaves(jax.tree.map(count, params, mask)))
    return TrainableCount(trained, sum(leaf.size for leaf in jax.tree.leaves(params)))
