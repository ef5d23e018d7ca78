"""Random numbers that depend on nothing but (seed, purpose, row).

A row is one training example, counted from the start of the run. Every host and worker process that
builds row ``r`` must draw the same numbers for it, whatever else it builds, and must reach row one
billion as cheaply as row one. Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011) is counter-based: NumPy jumps to any place of its stream in constant time, so the stream of
a purpose is simply laid out row after row.
"""

import hashlib

import numpy as np

# One step of Philox's counter yields four 64-bit words, and streams can only be entered at a step.
_WORDS_PER_COUNTER = 4


def _stream(seed: int, purpose: str, first_row: int, words_per_row: int) -> np.random.Philox:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    counters_per_row = words_per_row // _WORDS_PER_COUNTER
    key = int.from_bytes(digest, "little")
    return np.random.Philox(key=key).advance(first_row * counters_per_row)


def random_words(seed: int, purpose: str, first_row: int, rows: int, words: int) -> np.ndarray:
    """Uniform 64-bit words: uint64 [rows, words], the same for a row however rows are grouped."""
    padded = -(-words // _WORDS_PER_COUNTER) * _WORDS_PER_COUNTER
    stream = _stream(seed, purpose, first_row, padded)
    return stream.random_raw(rows * padded).reshape(rows, padded)[:, :words]


def uniforms(seed: int, purpose: str, first_row: int, rows: int, draws: int) -> np.ndarray:
    """Uniform numbers in [0, 1): float64 [rows, draws], the same however rows are grouped."""
    padded = -(-draws // _WORDS_PER_COUNTER) * _WORDS_PER_COUNTER
    # NumPy makes a double from exactly one word, so rows stay aligned with the counter.
    generator = np.random.Generator(_stream(seed, purpose, first_row, padded))
    return generator.random((rows, padded))[:, :draws]


def permutation(seed: int, purpose: str, block: int, size: int) -> np.ndarray:
    """A random order of ``range(size)`` for block number ``block``: int64 [size]."""
    return np.argsort(random_words(seed, purpose, block, 1, size)[0], kind="stable")


def below(uniforms_: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Turns uniforms in [0, 1) into integers in [0, bound), elementwise: int64."""
    return (uniforms_ * bound).astype(np.int64)


def purpose_seed(seed: int, purpose: str) -> int:
    """A 32-bit seed of its own for a purpose, for libraries that take a plain integer seed."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
