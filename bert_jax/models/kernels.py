"""Kernels, imported when a model is computed with one.

They are written with parts of JAX that take as long to import as flax, and that it may change or
give up: what runs without a kernel neither waits for them nor stops with them.
"""

import importlib
from collections.abc import Callable

import jax

from bert_jax.errors import UserError
from bert_jax.models.config import KERNEL_FIELDS

_FIELDS = ", ".join(f"model.{field}" for field in KERNEL_FIELDS)


def load_kernel(name: str) -> Callable[..., jax.Array]:
    """Imports a kernel.

    Args:
      name: ``module:function``, of a module beside this one.

    Raises:
      UserError: this JAX lacks what the kernel is written with.
    """
    module, _, function = name.partition(":")
    try:
        kernel: Callable[..., jax.Array] = getattr(
            importlib.import_module(f"bert_jax.models.{module}"), function
        )
    except ImportError as error:
        raise UserError(
            f"the kernels of bert_jax/models/{module}.py do not work with jax {jax.__version__} "
            f"({error}); set {_FIELDS} to 'xla', or install another jax"
        ) from error
    return kernel
