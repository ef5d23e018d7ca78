"""Gives the contestants of a benchmark the same processor."""

import os

from bert_jax.training.host_memory import keep_freed_memory


def use_cpu(threads: int) -> None:
    """Keeps JAX and PyTorch on so many cores; to be called before either starts its threads."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()  # as `bert_jax.train` does; the others in this process profit too
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
