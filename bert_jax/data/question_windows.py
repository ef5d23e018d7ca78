"""Questions and the windows of their contexts as rows of tokens.

Windows are google-research/bert's (``run_squad.py``), but that words are not cut at white space
first: characters tell which tokens an answer is, and which text tokens are.

Shapes: Q questions, W windows, T tokens, B rows, L sequence length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.chunks import offsets_of
from bert_jax.data.framing import FRAME_OF_PAIR, SpecialTokens, frame_pairs
from bert_jax.data.questions import Question
from bert_jax.data.tokenizer import TokenizedTexts, WordPieceTokenizer
from bert_jax.data.windows import Windows, slide
from bert_jax.errors import UserError


@dataclass(frozen=True)
class QuestionWindows:
    """Questions as rows ``[CLS] question [SEP] window of the context [SEP]``.

    Made by ``make_windows``. Positions of tokens are those in ``tokens``.

    Attributes:
      windows: the windows; their sequences are the questions.
      tokens: int32 [T], the contexts' tokens and then the questions'.
      character_starts, character_ends: int32 [contexts' tokens]; a token stands for the characters
        ``context[start:end]``.
      question_starts, question_lengths: int64 [Q], the questions' tokens.
      context_starts: int64 [Q], the first token of each question's context.
      answer_starts, answer_ends: int32 [W], the row's columns at which the first answer starts and
        (inclusive) ends; 0, the column of [CLS], where it is not wholly in the window.
      special: ids of the framing tokens.
    """

    windows: Windows
    tokens: np.ndarray
    character_starts: np.ndarray
    character_ends: np.ndarray
    question_starts: np.ndarray
    question_lengths: np.ndarray
    context_starts: np.ndarray
    answer_starts: np.ndarray
    answer_ends: np.ndarray
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.windows.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window's row, special ones included: int32 [W]."""
        return (self.context_columns + self.windows.lengths + 1).astype(np.int32)

    @property
    def context_columns(self) -> np.ndarray:
        """The column of each row at which the context's window starts: int64 [W]."""
        return self.question_lengths[self.windows.sequences] + FRAME_OF_PAIR - 1

    @property
    def window_starts(self) -> np.ndarray:
        """The position of each window's first token: int64 [W]."""
        return self.context_starts[self.windows.sequences] + self.windows.starts

    def rows(self, numbers: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """Model inputs and labels.

        Args:
          numbers: int [B], windows.
          max_length: L, no less than the longest of these rows.

        Returns:
          int32 ``token_ids``, ``segment_ids`` [B, L], ``lengths``, ``start_positions`` and
          ``end_positions`` [B].
        """
        questions = self.windows.sequences[numbers]
        framed = frame_pairs(
            self.tokens,
            self.question_starts[questions],
            self.question_lengths[questions],
            self.window_starts[numbers],
            self.windows.lengths[numbers],
            max_length,
            self.special,
        )
        return {
            "token_ids": framed.token_ids_BL,
            "segment_ids": framed.segment_ids_BL,
            "lengths": framed.lengths_B,
            "start_positions": self.answer_starts[numbers],
            "end_positions": self.answer_ends[numbers],
        }


def make_windows(
    questions: Sequence[Question],
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
    stride: int = 128,
    max_question_length: int = 64,
) -> QuestionWindows:
    """Tokenises questions and cuts their contexts into windows.

    Args:
      questions: the questions; a context that many share is tokenised once.
      tokenizer: the vocabulary.
      max_length: the most tokens of a row, special ones included.
      stride: context tokens from the start of a window to that of the next.
      max_question_length: questions are cut after so many tokens.

    Raises:
      UserError: the lengths leave no room for the context, or an answer has no tokens.
    """
    if stride < 1 or max_question_length < 0 or max_length <= max_question_length + FRAME_OF_PAIR:
        raise UserError(
            f"max_length={max_length} with max_question_length={max_question_length} and "
            f"stride={stride} leaves no window of the context; give a max_length of at least "
            f"{max_question_length + FRAME_OF_PAIR + 1} and a stride of at least 1"
        )
    contexts: dict[str, int] = {}
    context_of = np.array(
        [contexts.setdefault(question.context, len(contexts)) for question in questions], np.int64
    )
    asked = tokenizer.encode_with_characters([question.question for question in questions])
    told = tokenizer.encode_with_characters(list(contexts))
    question_lengths = np.minimum(np.diff(asked.offsets), max_question_length)
    room = max_length - FRAME_OF_PAIR - question_lengths
    context_lengths = np.diff(told.offsets)[context_of]
    windows = slide(context_lengths, room, np.full(len(questions), stride))

    first, last = _answer_tokens(questions, context_of, list(contexts), told)
    first, last = first[windows.sequences], last[windows.sequences]
    inside = (first >= windows.starts) & (last < windows.starts + windows.lengths)
    column = question_lengths[windows.sequences] + FRAME_OF_PAIR - 1 - windows.starts
    return QuestionWindows(
        windows=windows,
        tokens=np.concatenate([told.token_ids, asked.token_ids]),
        character_starts=told.character_starts,
        character_ends=told.character_ends,
        question_starts=asked.offsets[:-1] + len(told.token_ids),
        question_lengths=question_lengths,
        context_starts=told.offsets[:-1][context_of],
        answer_starts=np.where(inside, first + column, 0).astype(np.int32),
        answer_ends=np.where(inside, last + column, 0).astype(np.int32),
        special=SpecialTokens(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id),
    )


def _answer_tokens(
    questions: Sequence[Question],
    context_of: np.ndarray,
    contexts: Sequence[str],
    texts: TokenizedTexts,
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last token of each question's first answer: int64 [Q], in its context.

    They are the tokens of which the answer has a character. Of a question without an answer both
    are -1, which is in no window.
    """
    first = np.full(len(questions), -1)
    last = np.full(len(questions), -1)
    answerable = [question for question in questions if not question.is_impossible]
    answered = np.flatnonzero([not question.is_impossible for question in questions])
    context = context_of[answered]
    starts = np.array([question.answer_starts[0] for question in answerable], np.int64)
    ends = starts + np.array([len(question.answers[0]) for question in answerable], np.int64)
    # Characters are counted over all contexts, where they rise, so that one search serves all.
    before = offsets_of(np.array([len(text) for text in contexts], np.int64))
    before_token = np.repeat(before[:-1], np.diff(texts.offsets))
    first[answered] = np.searchsorted(
        texts.character_ends + before_token, starts + before[context], side="right"
    )
    last[answered] = np.searchsorted(
        texts.character_starts + before_token, ends + before[context], side="left"
    )
    first[answered] -= texts.offsets[context]
    last[answered] -= texts.offsets[context] + 1
    lost = np.flatnonzero(first > last)
    if lost.size:
        question = questions[lost[0]]
        raise UserError(
            f"the answer {question.answers[0]!r} of question {question.id} has no character that "
            "the tokenizer keeps; correct or remove it"
        )
    return first, last
