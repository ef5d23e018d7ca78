"""Where compiled programs are kept, so that a run that goes on need not compile again."""

import os
from pathlib import Path

import jax

from bert_jax.storage import is_remote

DIRECTORY = ".compiled"


def keep_compiled_programs(parent: Path) -> None:
    """Has JAX keep what took it over a second to compile, and look there before it compiles.

    A setting of the user's, such as ``JAX_COMPILATION_CACHE_DIR``, comes first, and
    ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off. The directory may be deleted at any time.
    To be called before the process compiles anything: later, JAX takes no notice.

    Args:
      parent: the directory, or the place in an object store, to keep them in; runs beside each
        other share what they compiled.
    """
    chosen: str | None = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009, untyped
    if chosen is not None:
        return
    if is_remote(parent) or os.access(parent, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", os.fspath(parent / DIRECTORY))
