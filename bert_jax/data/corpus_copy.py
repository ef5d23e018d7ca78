"""A copy on this machine of a corpus that lies in an object store."""

import shutil
from pathlib import Path

import filelock

from bert_jax.data.corpus import open_corpus
from bert_jax.data.documentation_corpus import corpus_cache_directory
from bert_jax.errors import UserError
from bert_jax.storage import as_path, copy, store_errors


def ensure_copy(directory: str) -> Path:
    """Copies a corpus into the cache, unless it is there already.

    Records are read at random, for which a store is too slow. The copy is named by the corpus's
    fingerprint, so another corpus at the same place is copied anew. Processes of one machine that
    ask at the same time wait for the one that copies.

    Args:
      directory: the corpus, in an object store.

    Returns:
      The copy's directory.

    Raises:
      UserError: there is no whole corpus, the store cannot be reached, or the cache cannot be
        written.
    """
    with store_errors(directory):
        corpus = open_corpus(directory)
    cache = corpus_cache_directory()
    kept = cache / f"copy-{corpus.fingerprint[:16]}"
    if kept.exists():
        return kept
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(cache / f"{kept.name}.lock")
        with lock, store_errors(directory):
            if not kept.exists():
                partial = cache / f".{kept.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    copy(as_path(directory), partial)
                    # Of a corpus that was being replaced it may be a mixture.
                    both = open_corpus(partial).fingerprint, open_corpus(directory).fingerprint
                    if both != (corpus.fingerprint, corpus.fingerprint):
                        raise UserError(f"{directory} changed while it was copied; try again")
                    partial.rename(kept)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"The corpus {directory} cannot be copied to {cache} ({error.strerror or error}); set "
            "XDG_CACHE_HOME to a directory with room for it"
        ) from None
    return kept
