"""Everything that a training step changes, in one pytree."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bert_jax.training.partition import Masking, everything, trained_part
from bert_jax.training.sharding import abstract_parameters, place, replicated, unbox


class TrainState(flax.struct.PyTreeNode):
    """The state of a run between two steps.

    Attributes:
      step: int32 scalar, the number of updates made; also the position in the data.
      params: tree of float32 parameters.
      optimizer_state: the optimizer's state, of the parameters that are trained.
    """

    step: Any
    params: Any
    optimizer_state: Any


def abstract_state(
    initialise: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    masking: Masking = everything,
) -> TrainState:
    """Shapes, dtypes and shardings of a run's state, computed without allocating any of it.

    Args:
      initialise: makes parameters, annotated with logical axes, from a key.
      optimizer: the optimizer.
      mesh: the device mesh.
      masking: says which parameters are trained.

    Raises:
      UserError: the mesh does not divide a parameter.
    """
    params = abstract_parameters(initialise, mesh)
    trained = trained_part(params, masking(params))
    whole = replicated(mesh)

    def like_parameter(leaf: Any, param: Any) -> jax.ShapeDtypeStruct:
        # Factored statistics have other shapes than their parameter; they are small.
        return place(leaf, param.sharding if leaf.shape == param.shape else whole)

    optimizer_state = optax.tree_utils.tree_map_params(
        optimizer,
        like_parameter,
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=lambda leaf: place(leaf, whole),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(step, params, optimizer_state)


def initial_state(
    initialise: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    key: jax.Array,
    masking: Masking = everything,
) -> TrainState:
    """Initialises a run's state where it will live, each device making its own part."""

    def make(key: jax.Array) -> TrainState:
        params = unbox(initialise(key))
        optimizer_state = optimizer.init(trained_part(params, masking(params)))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer_state)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(make, out_shardings=shardings)(key)
