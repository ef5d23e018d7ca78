"""Parameters to test with, made without compiling an initialisation."""

import jax
import numpy as np

from bert_jax.training.sharding import unbox


def random_params(initialise):
    """Normal numbers of deviation 0.5, so that texts differ, in the shapes of ``initialise``."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: unbox(initialise(key)), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(random.normal(0, 0.5, leaf.shape), leaf.dtype), shapes
    )
