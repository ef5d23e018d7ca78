"""A copy on this machine of a corpus that lies in an object store."""

import shutil
from pathlib import Path

import filelock
from etils import epath

from bert_jax.data.corpus import open_corpus
from bert_jax.data.documentation_corpus import corpus_cache_directory
from bert_jax.errors import UserError
from bert_jax.storage import as_path, store_errors


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
    copy = cache / f"copy-{corpus.fingerprint[:16]}"
    if copy.exists():
        return copy
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(cache / f"{copy.name}.lock")
        with lock, store_errors(directory):
            if not copy.exists():
                partial = cache / f".{copy.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                _copy_files(as_path(directory), partial)
                partial.rename(copy)
    except OSError as error:
        raise UserError(
            f"The corpus {directory} cannot be copied to {cache} ({error.strerror or error}); set "
            "XDG_CACHE_HOME to a directory with room for it"
        ) from None
    return copy


def _copy_files(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for entry in source.iterdir():
        if entry.is_dir():
            _copy_files(entry, target / entry.name)
        else:
            with epath.Path(entry).open("rb") as remote, open(target / entry.name, "wb") as local:
                shutil.copyfileobj(remote, local)
