"""Adds the words of a domain to a vocabulary, so that they are no longer read in pieces."""

import collections
from collections.abc import Iterable

import numpy as np

from bert_jax.data.chunks import offsets_of
from bert_jax.data.tokenizer import MAX_CHARACTERS_PER_WORD, WordPieceTokenizer

# A rarer word would not be seen often enough for its row to be learnt.
_MIN_COUNT = 5


def extend_vocabulary(
    tokenizer: WordPieceTokenizer, texts: Iterable[str], most: int
) -> WordPieceTokenizer:
    """Appends the words by which the texts become shortest; old tokens keep their ids.

    A word is worth the tokens that it saves: how often it stands there, times its pieces less one.
    One that is unknown now, of which nothing can be learnt, saves as many as it has characters.
    Words without a letter, those that occur fewer than five times and those that are too long for
    WordPiece are left out. WordPiece takes
    the longest beginning that it knows, so words that begin with a new one change their pieces too.

    Args:
      tokenizer: the vocabulary to extend.
      texts: the domain's text.
      most: how many words to add at most.

    Returns:
      The extended vocabulary; the same texts give the same, in whatever order they come.
    """
    # No rule of BERT's looks across a space, so that each distinct run of characters is split once.
    runs: collections.Counter[str] = collections.Counter()
    for text in texts:
        runs.update(text.split())
    counts: collections.Counter[str] = collections.Counter()
    for run, count in runs.items():
        for word in tokenizer.words(run):
            counts[word] += count
    candidates = [
        word
        for word, count in counts.items()
        if count >= _MIN_COUNT
        and len(word) <= MAX_CHARACTERS_PER_WORD
        and any(character.isalpha() for character in word)
    ]
    token_ids, pieces = tokenizer.encode_words(candidates)
    is_unknown = token_ids[offsets_of(pieces)[:-1]] == tokenizer.unknown_id
    saved_each = np.where(is_unknown, [len(word) for word in candidates], pieces - 1)
    saved = np.array([counts[word] for word in candidates]) * saved_each
    worth = {word: int(tokens) for word, tokens in zip(candidates, saved, strict=True) if tokens}
    new = sorted(worth, key=lambda word: (-worth[word], word))[:most]
    return WordPieceTokenizer([*tokenizer.vocabulary, *new], lowercase=tokenizer.lowercase)
