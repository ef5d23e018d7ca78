"""A corpus of nothing in particular, for when only the size of its vocabulary matters."""

import json
from pathlib import Path

from bert_jax.data.preparation import PrepareOptions, prepare_corpus
from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.errors import UserError

_DOCUMENTS = 4
_WORDS = 10  # of a sentence


def write_stand_in_corpus(directory: Path, *, vocabulary_size: int, max_length: int) -> None:
    """Writes a small corpus of made-up words.

    What a step computes depends on a corpus only by its vocabulary's size. Where sequences share
    rows, how many do so depends on their lengths: these are long, and hardly any shares its row.

    Args:
      directory: where it is written; does not exist.
      vocabulary_size: how many tokens the vocabulary has, exactly.
      max_length: the longest row, special tokens included.

    Raises:
      UserError: the vocabulary would have no words, or ``max_length`` is out of range.
    """
    words = vocabulary_size - len(SPECIAL_TOKENS)
    if words < 1:
        raise UserError(
            f"a vocabulary of {vocabulary_size} tokens has no room for words; give at least "
            f"{len(SPECIAL_TOKENS) + 1}"
        )
    names = [f"w{number}" for number in range(words)]
    tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *names], lowercase=True)
    text = directory.with_suffix(".jsonl")
    sentence = " ".join((names * _WORDS)[:_WORDS]).capitalize() + ". "
    document = json.dumps({"text": sentence * (4 * max_length // _WORDS)})
    text.write_text(f"{document}\n" * _DOCUMENTS, encoding="utf-8")
    options = PrepareOptions(
        vocabulary=tokenizer, max_length=max_length, validation_share=0.0, workers=0
    )
    prepare_corpus([str(text)], directory, options)
