"""The built-in corpus: prepared when it is first asked for, and cached for the user."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import filelock

from bert_jax.data.builder import FORMAT_VERSION
from bert_jax.data.corpus import open_corpus
from bert_jax.data.documentation import documented_packages
from bert_jax.errors import Stopped, UserError

# Enough text for a steady validation loss: the corpus is small.
_VALIDATION_SHARE = 0.03
_PREFIX = "docs-"


def corpus_cache_directory() -> Path:
    """Where built-in corpora are kept: ``bert_jax`` in $XDG_CACHE_HOME, or in ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "bert_jax"


def cached_docs_corpus(fingerprints: Collection[str]) -> Path | None:
    """The directory of a built-in corpus that is in the cache already, by its fingerprint."""
    for directory in sorted(corpus_cache_directory().glob(f"{_PREFIX}*/")):
        # One of an older version, or damaged, is of no use.
        with contextlib.suppress(UserError):
            if open_corpus(directory).fingerprint in fingerprints:
                return directory
    return None


def ensure_docs_corpus(
    *, vocabulary_size: int, max_length: int, lowercase: bool, workers: int | None = None
) -> Path:
    """The directory of the corpus made from the machine's documentation; prepared if need be.

    Another version of Python or of a documented package makes another corpus. Processes that ask at
    the same time wait for the one that prepares. That happens in a process of its own: the workers
    must not inherit an initialised JAX.

    Args:
      vocabulary_size: how many tokens to aim for.
      max_length: the longest row, special tokens included.
      lowercase: whether the vocabulary is uncased.
      workers: processes that prepare it; None is one per core.

    Raises:
      UserError: it could not be prepared; the reason was printed.
      Stopped: a signal ended the preparation, as one to all processes of a terminal does.
    """
    key = json.dumps(
        [FORMAT_VERSION, sys.version, vocabulary_size, max_length, lowercase, _VALIDATION_SHARE]
    )
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in documented_packages()]
    digest = hashlib.sha256("\n".join([key, *versions]).encode()).hexdigest()
    cache = corpus_cache_directory()
    directory = cache / f"{_PREFIX}{digest[:16]}"
    if directory.exists():
        return directory
    command = [
        sys.executable,
        *("-m", "bert_jax.prepare"),
        *("--input", "docs"),
        *("--output", str(directory)),
        *("--vocab_size", str(vocabulary_size)),
        *("--max_length", str(max_length)),
        *("--validation_share", str(_VALIDATION_SHARE)),
        "--uncased" if lowercase else "--cased",
        *(("--workers", str(workers)) if workers is not None else ()),
    ]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f"{directory.name}.lock"):
            if directory.exists():
                return directory
            # bert_jax is found where this process found it, installed or not.
            package_root = str(Path(__file__).parents[2])
            path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
            finished = subprocess.run(
                command, env=os.environ | {"PYTHONPATH": path}, stdout=sys.stderr, check=False
            )
    except OSError as error:
        raise UserError(
            f"The cache {cache} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a "
            "directory that can"
        ) from None
    for number in (signal.SIGINT, signal.SIGTERM):
        if finished.returncode in (-number, 128 + number):  # before it could answer, and after
            raise Stopped(number)
    if finished.returncode != 0:
        raise UserError(
            f"The built-in corpus could not be prepared (exit code {finished.returncode}, the "
            "reason stands above); give a corpus of your own with corpus=DIRECTORY"
        )
    open_corpus(directory)
    return directory
