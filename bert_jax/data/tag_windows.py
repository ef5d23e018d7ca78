"""Tagged sentences, whole or in windows, as rows of tokens.

A word's tag is learnt and predicted at the word's first token, as in BERT's paper
(https://arxiv.org/abs/1810.04805, section 5.3). A sentence too long for a row is cut into windows
that overlap by half, and each word counts in the one window that has most context around it, so
nothing is cut off or counted twice.

Shapes: N sentences, W windows, S words that count in them, T tokens, B rows, L sequence length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.chunks import offsets_of, positions_of_runs
from bert_jax.data.framing import FRAME_OF_SINGLE, SpecialTokens, frame_singles
from bert_jax.data.tagged_sentences import OUTSIDE, Sentence
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.data.windows import Windows, has_most_context, slide, slots
from bert_jax.errors import UserError

# The label of a tag that is not to be learnt.
_NO_LABEL = -1


@dataclass(frozen=True)
class TagWindows:
    """Sentences as rows ``[CLS] window of the sentence [SEP]``.

    Made by ``make_tag_windows``.

    Attributes:
      windows: the windows; their sequences are the sentences.
      tokens: int32 [T], the tokens of all sentences.
      sentence_starts: int64 [N], each sentence's first token.
      word_counts: int64 [N], the words of each sentence.
      word_offsets: int64 [W+1]; of the next three, window w has ``[word_offsets[w]:
        word_offsets[w + 1]]``.
      words: int64 [S], which word counts here, numbered over all sentences.
      columns: int32 [S], the row's column of the word's first token.
      labels: int32 [S], the word's label, -1 where it is not to be learnt.
      special: ids of the framing tokens.
    """

    windows: Windows
    tokens: np.ndarray
    sentence_starts: np.ndarray
    word_counts: np.ndarray
    word_offsets: np.ndarray
    words: np.ndarray
    columns: np.ndarray
    labels: np.ndarray
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.windows.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window's row, special ones included: int32 [W]."""
        return (self.windows.lengths + FRAME_OF_SINGLE).astype(np.int32)

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """Model inputs and labels.

        Args:
          numbers: int [B], windows.
          max_length: L, no less than the longest of these rows.

        Returns:
          int32 ``token_ids``, ``segment_ids`` [B, L], ``lengths`` [B], ``labels`` [B, L], and
          float32 ``label_weights`` [B, L]: 1 at the first token of each word that counts, else 0.
        """
        sequences = self.windows.sequences[numbers]
        framed = frame_singles(
            self.tokens,
            self.sentence_starts[sequences] + self.windows.starts[numbers],
            self.windows.lengths[numbers],
            max_length,
            self.special,
        )
        counts = np.diff(self.word_offsets)[numbers]
        words = positions_of_runs(self.word_offsets[numbers], counts)
        row = np.repeat(np.arange(len(numbers)), counts)
        labels_BL = np.zeros_like(framed.token_ids_BL)
        weights_BL = np.zeros(labels_BL.shape, np.float32)
        known = self.labels[words] != _NO_LABEL
        place = row[known], self.columns[words[known]]
        labels_BL[place] = self.labels[words[known]]
        weights_BL[place] = 1
        return {
            "token_ids": framed.token_ids_BL,
            "segment_ids": framed.segment_ids_BL,
            "lengths": framed.lengths_B,
            "labels": labels_BL,
            "label_weights": weights_BL,
        }

    def tags(self, predicted: Sequence[np.ndarray], names: Sequence[str]) -> list[list[str]]:
        """The tags of every sentence's words.

        Args:
          predicted: for each of the W windows the labels predicted at its row's columns: at least
            as many as the row has tokens, so an array [W, L] or rows of several lengths.
          names: the labels' names; a word that has no tokens is ``O``.
        """
        tags = [OUTSIDE] * int(self.word_counts.sum())
        for window, labels in enumerate(predicted):
            mine = slice(self.word_offsets[window], self.word_offsets[window + 1])
            chosen = np.asarray(labels)[self.columns[mine]]
            for word, label in zip(self.words[mine].tolist(), chosen.tolist(), strict=True):
                tags[word] = names[label]
        offsets = offsets_of(self.word_counts).tolist()
        return [tags[start:end] for start, end in zip(offsets, offsets[1:], strict=False)]


def make_tag_windows(
    sentences: Sequence[Sentence],
    names: Sequence[str],
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
) -> TagWindows:
    """Tokenises sentences word by word and cuts those that are too long into windows.

    Args:
      sentences: the sentences.
      names: the labels' names; a tag that is none of them is not learnt.
      tokenizer: the vocabulary.
      max_length: the most tokens of a row, special ones included.

    Raises:
      UserError: ``max_length`` leaves no room for a sentence.
    """
    if max_length <= FRAME_OF_SINGLE:
        raise UserError(
            f"max_length={max_length} leaves no room for a sentence; give at least "
            f"{FRAME_OF_SINGLE + 1}"
        )
    tokens, pieces = tokenizer.encode_words(
        word for sentence in sentences for word in sentence.words
    )
    word_counts = np.array([len(sentence.words) for sentence in sentences], np.int64)
    first_tokens = offsets_of(pieces)
    sentence_offsets = first_tokens[offsets_of(word_counts)]
    room = max_length - FRAME_OF_SINGLE
    windows = slide(
        np.diff(sentence_offsets),
        np.full(len(sentences), room),
        np.full(len(sentences), max(room // 2, 1)),
    )
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array(
        [label_of.get(tag, _NO_LABEL) for sentence in sentences for tag in sentence.tags], np.int32
    )
    word_at = np.full(len(tokens), -1)  # the word that a token is the first of
    with_tokens = np.flatnonzero(pieces)
    word_at[first_tokens[with_tokens]] = with_tokens

    window, place = slots(windows)
    token = (sentence_offsets[:-1][windows.sequences] + windows.starts)[window] + place
    counts = has_most_context(windows) & (word_at[token] >= 0)
    words = word_at[token[counts]]
    per_window = np.bincount(window[counts], minlength=len(windows.starts))
    return TagWindows(
        windows=windows,
        tokens=tokens,
        sentence_starts=sentence_offsets[:-1],
        word_counts=word_counts,
        word_offsets=offsets_of(per_window),
        words=words,
        columns=(place[counts] + 1).astype(np.int32),
        labels=labels[words],
        special=SpecialTokens(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id),
    )
