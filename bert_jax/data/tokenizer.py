"""WordPiece, as BERT has it (https://arxiv.org/abs/1810.04805, google-research/bert).

The work is done by Hugging Face ``tokenizers``; this class fixes what is open there: which special
tokens exist, that "[MASK]" in raw text is ordinary characters, that training is deterministic, and
one canonical form whose hash names the vocabulary.

Ids equal those of transformers' Python BertTokenizer but for characters that ``tokenizers``' tables
do not know (punctuation and marks of Unicode 9 and later, and what is not assigned) or take for no
ideograph (U+2B820 to U+2B91F), for a capital sigma that ends a word, which Python lower-cases by
its place, and for decomposed characters in cased text, which transformers composes first and
google-research/bert, like this, does not.
"""

import collections
import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bert_jax.data.chunks import offsets_of, positions_of_runs
from bert_jax.errors import UserError
from bert_jax.storage import as_path

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNKNOWN, CLS, SEP, MASK)
CONTINUATION_PREFIX = "##"
# Longer words become [UNK], as in transformers' BertTokenizer.
MAX_CHARACTERS_PER_WORD = 100
_MIN_ALPHABET = 1000
# An encoding with offsets takes far more memory than its arrays.
_TEXTS_AT_ONCE = 1024


class TokenizedTexts(NamedTuple):
    """The tokens of n texts, one text after the other.

    Attributes:
      token_ids: int32 [T].
      character_starts, character_ends: int32 [T]; a token stands for ``text[start:end]``. Within a
        text neither falls, and the pieces of one character have the same.
      offsets: int64 [n+1]; text i's tokens are ``token_ids[offsets[i]:offsets[i + 1]]``.
    """

    token_ids: np.ndarray
    character_starts: np.ndarray
    character_ends: np.ndarray
    offsets: np.ndarray


class WordPieceTokenizer:
    """A vocabulary and the rules that turn text into its ids.

    Made by ``train``, ``from_file`` or ``from_json``; immutable; may be pickled.

    Attributes:
      vocabulary: the tokens, in the order of their ids.
      lowercase: whether text is lower-cased (and stripped of accents) first.
      size: the number of tokens, V.
      pad_id, unknown_id, cls_id, sep_id, mask_id: ids of the special tokens.
      special_ids: all five, rising.
      is_continuation: bool [V], true for pieces that continue a word ("##ing"). Read-only.
      hash: 64 hexadecimal digits over the vocabulary and ``lowercase``; two tokenizers with equal
        hashes give equal ids.
    """

    def __init__(self, vocabulary: Sequence[str], *, lowercase: bool, origin: str = "vocabulary"):
        """Builds a tokenizer from its tokens.

        Args:
          vocabulary: the tokens, in the order of their ids.
          lowercase: whether to lower-case text and strip accents.
          origin: where the vocabulary came from, for messages.

        Raises:
          UserError: a special token is missing, or a token stands twice.
        """
        ids = {token: i for i, token in enumerate(vocabulary)}
        if len(ids) != len(vocabulary):
            twice = next(token for i, token in enumerate(vocabulary) if ids[token] != i)
            raise UserError(
                f"{origin} has the token {twice!r} twice; rename one of them, so that the others "
                "keep their numbers"
            )
        for token in SPECIAL_TOKENS:
            if token not in ids:
                raise UserError(
                    f"{origin} has no {token} token, which BERT needs; use a vocabulary that has it"
                )
        self._ids = ids
        self.vocabulary = tuple(vocabulary)
        self.lowercase = lowercase
        self.size = len(vocabulary)
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (
            ids[token] for token in SPECIAL_TOKENS
        )
        self.special_ids = tuple(sorted(ids[token] for token in SPECIAL_TOKENS))
        self.is_continuation = np.array(
            [token.startswith(CONTINUATION_PREFIX) for token in vocabulary], bool
        )
        self.is_continuation.flags.writeable = False
        digest = hashlib.sha256(json.dumps([lowercase, self.vocabulary]).encode())
        self.hash = digest.hexdigest()
        self._parses_special_tokens = _wordpiece(ids, lowercase)
        self._plain = _wordpiece(ids, lowercase)
        self._plain.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int, lowercase: bool) -> "WordPieceTokenizer":
        """Learns a vocabulary. The same texts give the same vocabulary.

        Args:
          texts: the text to learn from; lines or paragraphs are read faster than whole books.
          size: how many tokens to aim for, special tokens included; little text gives fewer.
          lowercase: whether to lower-case text and strip accents.

        Raises:
          UserError: ``size`` has no room for the special tokens, or there is no text.
        """
        if size < len(SPECIAL_TOKENS) + 2:  # a character, and the same inside of words
            raise UserError(
                f"A vocabulary of {size} tokens has no room for text next to the "
                f"{len(SPECIAL_TOKENS)} special tokens; choose a larger --vocab_size"
            )
        texts = list(texts)
        tokenizer = _wordpiece({UNKNOWN: 0}, lowercase)
        # Scripts such as Chinese need a large alphabet; rare characters must not displace words.
        most = min(max(_MIN_ALPHABET, size // 4), (size - len(SPECIAL_TOKENS)) // 2)
        alphabet = _alphabet(texts, tokenizer)[:most]
        inside_words = [
            CONTINUATION_PREFIX + character
            for character in alphabet
            if len(tokenizer.pre_tokenizer.pre_tokenize_str(_normal(tokenizer, "a" + character)))
            == 1
        ]
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=2,
            # The trainer numbers single characters as it meets them, in the order of a randomly
            # seeded hash table, and breaks ties by number. Listing them all here fixes the order.
            special_tokens=[*SPECIAL_TOKENS, *alphabet, *inside_words],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            continuing_subword_prefix=CONTINUATION_PREFIX,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        vocabulary = _in_order_of_ids(tokenizer.get_vocab(with_added_tokens=True))
        if len(vocabulary) == len(SPECIAL_TOKENS):
            raise UserError("There is no text to learn a vocabulary from; check --input")
        return cls(vocabulary, lowercase=lowercase, origin="The trained vocabulary")

    @classmethod
    def from_file(cls, path: str | Path, *, lowercase: bool | None = None) -> "WordPieceTokenizer":
        """Reads ``vocab.txt`` (one token a line) or a WordPiece ``tokenizer.json``.

        Args:
          path: the file.
          lowercase: whether to lower-case text and strip accents. None takes what a
            ``tokenizer.json`` says, and takes a ``vocab.txt`` as cased when more than a hundredth
            of its tokens hold a capital (of google-research/bert's vocabularies the cased ones are
            far above that, the uncased and Chinese ones far below).

        Raises:
          UserError: the file cannot be read, is not a WordPiece vocabulary, lacks a special token,
            or says otherwise than ``lowercase``.
        """
        path = as_path(path)
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise UserError(
                f"The vocabulary {path} cannot be read ({error.strerror}); check its name"
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"The vocabulary {path} is not UTF-8 (byte {error.start}); convert it first"
            ) from None
        if path.suffix == ".json":
            return cls._from_tokenizer_json(text, lowercase=lowercase, origin=str(path))
        # Only "\n" ends a line: vocabularies hold other characters that Python takes for line ends.
        vocabulary = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        if lowercase is None:
            lowercase = not _looks_cased(vocabulary)
        return cls(vocabulary, lowercase=lowercase, origin=str(path))

    @classmethod
    def from_json(cls, text: str) -> "WordPieceTokenizer":
        """Reads what ``to_json`` wrote.

        Raises:
          UserError: the text is not a WordPiece ``tokenizer.json`` as BERT uses it.
        """
        return cls._from_tokenizer_json(text, lowercase=None, origin="tokenizer JSON")

    @classmethod
    def _from_tokenizer_json(
        cls, text: str, *, lowercase: bool | None, origin: str
    ) -> "WordPieceTokenizer":
        try:
            fields = json.loads(text)
            model: dict[str, Any] = fields["model"]
            normalizer: dict[str, Any] = fields["normalizer"]
            vocabulary = _in_order_of_ids(
                {token: int(i) for token, i in model["vocab"].items()}
                | {added["content"]: int(added["id"]) for added in fields["added_tokens"]}
            )
            is_bert = (
                model.get("type", "WordPiece") == "WordPiece"
                and model.get("continuing_subword_prefix") == CONTINUATION_PREFIX
                and model.get("max_input_chars_per_word", MAX_CHARACTERS_PER_WORD)
                == MAX_CHARACTERS_PER_WORD
                and normalizer["type"] == "BertNormalizer"
                and normalizer.get("clean_text", True)
                and normalizer.get("handle_chinese_chars", True)
                and fields["pre_tokenizer"]["type"] == "BertPreTokenizer"
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            is_bert = False
        if not is_bert:
            raise UserError(
                f"{origin} is not the tokenizer.json of a BERT WordPiece tokenizer; use one that "
                "is, or a vocab.txt"
            )
        # strip_accents is null where it follows lowercase, which is all that BERT uses.
        own_lowercase = bool(normalizer["lowercase"])
        if normalizer.get("strip_accents") not in (None, own_lowercase):
            raise UserError(
                f"{origin} lower-cases without stripping accents, or the reverse, which BERT's "
                "tokenizer does not; use its vocab.txt"
            )
        if lowercase is not None and lowercase != own_lowercase:
            raise UserError(
                f"{origin} is {'uncased' if own_lowercase else 'cased'}, which contradicts "
                f"--{'uncased' if lowercase else 'cased'}; leave the option out"
            )
        return cls(vocabulary, lowercase=own_lowercase, origin=origin)

    def to_json(self) -> str:
        """A ``tokenizer.json`` that ``tokenizers`` and ``transformers`` read; keys are sorted."""
        fields = json.loads(self._parses_special_tokens.to_str())
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of raw texts, without [CLS] and [SEP]; "[MASK]" in a text is not a special token."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of ``encode_batch``, faster, for much text with spaces between words.

        No rule of BERT's looks across a space, so each distinct word is tokenised but once.

        Returns:
          The ids of all texts, int32 [T], and how many of them each text has, int64 [n].
        """
        words = itertools.chain.from_iterable(text.split(" ") for text in texts)
        word_counts = np.fromiter((text.count(" ") + 1 for text in texts), np.int64, len(texts))
        token_ids, lengths = self.encode_words(words)
        return token_ids, np.diff(offsets_of(lengths)[offsets_of(word_counts)])

    def encode_words(self, words: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of words (or of any texts, of which many are alike), each tokenised by itself.

        Returns:
          The ids of all words, int32 [T], and how many of them each word has, int64 [n]: none for
          a word of white space and control characters only.
        """
        numbers: dict[str, int] = {}
        occurrences = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
        ids = self.encode_batch(list(numbers))
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(lengths.sum()))
        starts, lengths_in_order = offsets_of(lengths)[occurrences], lengths[occurrences]
        return flat[positions_of_runs(starts, lengths_in_order)], lengths_in_order

    def words(self, text: str) -> list[str]:
        """The words and marks of punctuation that are split into pieces, lower-cased if so set."""
        normal = _normal(self._plain, text)
        return [word for word, _ in self._plain.pre_tokenizer.pre_tokenize_str(normal)]

    def encode_with_characters(self, texts: Sequence[str]) -> TokenizedTexts:
        """Ids as ``encode_batch`` gives them, with the characters that each token stands for.

        Combining marks that are stripped belong to the token that they follow.
        """
        ids, characters, lengths = [], [], []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = list(texts[start : start + _TEXTS_AT_ONCE])
            encodings = self._plain.encode_batch(batch, add_special_tokens=False)
            for text, encoding in zip(batch, encodings, strict=True):
                ids.append(np.array(encoding.ids, np.int32))
                characters.append(np.array(encoding.offsets, np.int32).reshape(-1, 2))
                lengths.append(len(encoding))
                if self.lowercase and not text.isascii():
                    characters[-1][:, 1] = _past_marks(text)[characters[-1][:, 1]]
        spans = np.concatenate([np.zeros((0, 2), np.int32), *characters])
        return TokenizedTexts(
            token_ids=np.concatenate([np.zeros(0, np.int32), *ids]),
            character_starts=spans[:, 0],
            character_ends=spans[:, 1],
            offsets=offsets_of(np.array(lengths, np.int64)),
        )

    def encode_with_masks(self, text: str) -> list[int]:
        """Ids of a text in which "[MASK]" (and the other special tokens) mean what they say.

        Without [CLS] and [SEP] around it.
        """
        return self._parses_special_tokens.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Text for ids, special tokens included, with word pieces joined."""
        ids = [int(i) for i in token_ids]
        return self._parses_special_tokens.decode(ids, skip_special_tokens=False)

    def id_of(self, token: str) -> int:
        """The id of a token, or of [UNK] if the vocabulary lacks it."""
        return self._ids.get(token, self.unknown_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.vocabulary, self.lowercase)


def _rebuild(vocabulary: tuple[str, ...], lowercase: bool) -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary, lowercase=lowercase)


def _past_marks(text: str) -> np.ndarray:
    """For each character (and the end) where the combining marks that start there end."""
    following = np.arange(len(text) + 1)
    marks = {character for character in set(text) if unicodedata.category(character) == "Mn"}
    if marks:
        for at in reversed(range(len(text))):
            if text[at] in marks:
                following[at] = following[at + 1]
    return following


def _alphabet(texts: Iterable[str], tokenizer: tokenizers.Tokenizer) -> list[str]:
    """The characters that are left of texts when they are normalised, the most frequent first."""
    raw: collections.Counter[str] = collections.Counter()
    for text in texts:
        raw.update(text)
    counts: collections.Counter[str] = collections.Counter()
    for character, count in raw.items():  # normalising works character by character
        for normal in "".join(_normal(tokenizer, character).split()):
            counts[normal] += count
    return sorted(counts, key=lambda character: (-counts[character], character))


def _normal(tokenizer: tokenizers.Tokenizer, text: str) -> str:
    normal: str = tokenizer.normalizer.normalize_str(text)
    return normal


def _wordpiece(ids: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(
            ids,
            unk_token=UNKNOWN,
            max_input_chars_per_word=MAX_CHARACTERS_PER_WORD,
            continuing_subword_prefix=CONTINUATION_PREFIX,
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION_PREFIX)
    if all(token in ids for token in SPECIAL_TOKENS):
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _looks_cased(vocabulary: Sequence[str]) -> bool:
    words = [token for token in vocabulary if not token.startswith("[")]
    capitalised = sum(any(map(str.isupper, word)) for word in words)
    return capitalised > len(words) / 100


def _in_order_of_ids(ids: dict[str, int]) -> list[str]:
    """The tokens by id; ids must be 0, 1, 2, ... without gaps."""
    vocabulary = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in vocabulary] != list(range(len(vocabulary))):
        raise ValueError("token ids have gaps")
    return vocabulary
