"""Pretraining examples by row: records are chosen, read, paired and masked, a batch at a time.

An ``ExampleStream`` is a function from rows to arrays. Nothing is carried from batch to batch, so
any host, worker or restarted run can build any rows and gets the same bits.

Shapes: B rows, N sequences, L row length, M masked positions, Q most sequences of a row.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bert_jax.data.corpus import Split
from bert_jax.data.framing import SpecialTokens
from bert_jax.data.masking import MaskingOptions, TokenTable, mask_rows
from bert_jax.data.mixture import MixturePlan
from bert_jax.data.order import shuffled_records
from bert_jax.data.packing import Packing, PackingPlan, pack_batch, packing_of
from bert_jax.data.pairs import (
    UNIFORMS_PER_ROW,
    Objective,
    PairOptions,
    Rows,
    build_rows,
    longest_texts,
)
from bert_jax.data.randomness import purpose_seed, random_words, uniforms
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.data.window_index import WindowIndex
from bert_jax.errors import UserError

_SAMPLED_ROWS = 2048  # whose real lengths tell what packing comes to


class ExampleStream:
    """An endless stream of pretraining examples from one split of one or more corpora.

    Args:
      splits: one split of each corpus; all were made with the same vocabulary.
      weights: each corpus's share of the rows, or of the sequences that share them; they sum to 1.
      tokenizer: the vocabulary.
      pairs: how rows are built.
      masking: how they are masked; of the same ``max_length``.
      seed: the run's seed.
      purpose: names the stream; streams of other purposes are independent.

    Attributes:
      packing: what packing comes to in the first rows, where rows hold several sequences.

    Raises:
      UserError: next sentences are asked for, and a split has one document only.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        weights: Sequence[float],
        tokenizer: WordPieceTokenizer,
        pairs: PairOptions,
        masking: MaskingOptions,
        *,
        seed: int,
        purpose: str,
    ):
        for split in splits:
            if pairs.objective is Objective.NEXT_SENTENCE and _has_one_document(split):
                raise UserError(
                    f"the {split.name} split of {split.directory} has only one document, so a "
                    "random next segment cannot come from another one; prepare the corpus from "
                    "more documents, or set --config.data.objective=none"
                )
        self._splits = splits
        self._indexes = [WindowIndex(split.lengths, pairs.capacity) for split in splits]
        self._mixture = MixturePlan(weights, purpose_seed(seed, f"{purpose} mixture"))
        self._pairs = pairs
        self._masking = masking
        self._special = SpecialTokens(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
        self._table = token_table(tokenizer)
        self._seed = seed
        self._purpose = purpose
        self._plan_of_rows: PackingPlan | None = None
        self.packing: Packing | None = None
        if pairs.is_packed:
            self._plan_of_rows = plan = PackingPlan(
                self._longest_lengths,
                sum(self.epoch_sizes()),
                pairs.max_length,
                pairs.sequences_per_row,
                seed=seed,
                purpose=purpose,
            )
            # The plan knows bounds of the lengths only.
            sampled = min(plan.rows_per_epoch, _SAMPLED_ROWS)
            lengths = self._packed(plan, 0, sampled)["lengths"]
            self.packing = packing_of(lengths[lengths > 0], sampled, pairs.max_length)

    def epoch_sizes(self) -> list[int]:
        """Sequences of one epoch of each corpus."""
        return [len(index) for index in self._indexes]

    def rows_per_epoch(self) -> int:
        """Rows of one epoch of all corpora."""
        plan = self._plan_of_rows
        return sum(self.epoch_sizes()) if plan is None else plan.rows_per_epoch

    def counts(self, rows: int) -> np.ndarray:
        """How many sequences of the first ``rows`` rows each corpus has: int64 [corpora]."""
        plan = self._plan_of_rows
        return self._mixture.counts(rows if plan is None else plan.sequences_before(rows))

    def batch(self, first_row: int, rows: int) -> dict[str, np.ndarray]:
        """Builds rows ``first_row`` to ``first_row + rows`` of the stream.

        Returns:
          ``token_ids``, ``segment_ids`` int32 [B, L]; ``masked_positions``, ``masked_labels`` int32
          and ``masked_weights`` float32 [B, M]; and of each row [B], or of each of its sequences
          [B, Q] where it may hold several, ``lengths`` int32, its real tokens,
          ``next_sentence_label`` int32, and ``example_weights`` float32, 1 but where there is none.
        """
        if self._plan_of_rows is None:
            sequences = self._build(np.arange(first_row, first_row + rows))
        else:
            sequences = self._packed(self._plan_of_rows, first_row, rows)
        lengths = sequences["lengths"]
        masked = mask_rows(
            sequences["token_ids"],
            lengths.reshape(rows, -1).sum(axis=1),
            self._uniforms("masks", first_row, rows, self._masking.uniforms_per_row),
            self._words("mask order", first_row, rows, self._masking.words_per_row),
            self._masking,
            self._table,
        )
        return sequences | {
            "token_ids": masked.token_ids_BL,
            "masked_positions": masked.positions_BM,
            "masked_labels": masked.labels_BM,
            "masked_weights": masked.weights_BM,
            "example_weights": (lengths > 0).astype(np.float32),
        }

    def _locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The corpus of each sequence, its window and its epoch there: int64 [N] each."""
        if not numbers.size:
            return numbers, numbers, numbers
        first = int(numbers.min())
        sources, places = self._mixture.assign(first, int(numbers.max()) - first + 1)
        sources, windows = sources[numbers - first], places[numbers - first]
        epochs = windows // np.array(self.epoch_sizes())[sources]
        for source, index in enumerate(self._indexes):
            mine = sources == source
            shuffle_seed = purpose_seed(self._seed, f"{self._purpose} order {source}")
            windows[mine] = shuffled_records(len(index), windows[mine], shuffle_seed)
        return sources, windows, epochs

    def _longest_lengths(self, numbers: np.ndarray) -> np.ndarray:
        """The most tokens of each sequence, special ones included: int64 [N]."""
        sources, windows, _ = self._locate(numbers)
        pair_uniforms = self._pair_uniforms(numbers)
        lengths = np.empty(len(numbers), np.int64)
        for source, index in enumerate(self._indexes):
            mine = sources == source
            texts = longest_texts(index, windows[mine], pair_uniforms[mine], self._pairs)
            lengths[mine] = texts + self._pairs.frame
        return lengths

    def _build(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The sequences of some numbers, each in a row of its own, not masked yet."""
        sources, windows, epochs = self._locate(numbers)
        pair_uniforms = self._pair_uniforms(numbers)
        coins = self._by_number(numbers, self._words, "cuts", self._pairs.coins_per_row)
        built: list[Rows] = []
        order: list[np.ndarray] = []
        for source, (split, index) in enumerate(zip(self._splits, self._indexes, strict=True)):
            mine = np.flatnonzero(sources == source)
            if not mine.size:
                continue
            order.append(mine)
            built.append(
                build_rows(
                    split,
                    index,
                    windows[mine],
                    epochs[mine],
                    pair_uniforms[mine],
                    coins[mine],
                    self._pairs,
                    self._special,
                )
            )
        if not built:  # no row that was asked for holds anything
            none, no_ids = np.zeros(0, np.int32), np.zeros((0, self._pairs.max_length), np.int32)
            return _named(Rows(no_ids, no_ids, none, none))
        # Rows were built source by source; put them back where the mixture has them.
        back = np.argsort(np.concatenate(order))
        return _named(Rows(*(np.concatenate(parts)[back] for parts in zip(*built, strict=True))))

    def _packed(self, plan: PackingPlan, first_row: int, rows: int) -> dict[str, np.ndarray]:
        """Rows that sequences share, not masked yet."""
        numbers, row_of = plan.rows(first_row, rows)
        sequences = self._build(numbers)
        return pack_batch(sequences, row_of, rows, self._pairs.max_length, plan.most)

    def _pair_uniforms(self, numbers: np.ndarray) -> np.ndarray:
        return self._by_number(numbers, self._uniforms, "pairs", UNIFORMS_PER_ROW)

    def _by_number(
        self,
        numbers: np.ndarray,
        draw: Callable[[str, int, int, int], np.ndarray],
        purpose: str,
        draws: int,
    ) -> np.ndarray:
        """What is drawn for the sequences of some numbers [N, draws]; for single segments none."""
        if self._pairs.objective is Objective.NONE or not numbers.size:
            return np.empty((len(numbers), 0))
        first = int(numbers.min())
        return draw(purpose, first, int(numbers.max()) - first + 1, draws)[numbers - first]

    def _uniforms(self, purpose: str, first_row: int, rows: int, draws: int) -> np.ndarray:
        return uniforms(self._seed, f"{self._purpose} {purpose}", first_row, rows, draws)

    def _words(self, purpose: str, first_row: int, rows: int, words: int) -> np.ndarray:
        return random_words(self._seed, f"{self._purpose} {purpose}", first_row, rows, words)


def _named(rows: Rows) -> dict[str, np.ndarray]:
    """The arrays of a batch that rows are."""
    return {
        "token_ids": rows.token_ids_BL,
        "segment_ids": rows.segment_ids_BL,
        "lengths": rows.lengths_B,
        "next_sentence_label": rows.labels_B,
    }


def token_table(tokenizer: WordPieceTokenizer) -> TokenTable:
    """What masking needs to know of a vocabulary."""
    is_special = np.zeros(tokenizer.size, bool)
    is_special[list(tokenizer.special_ids)] = True
    return TokenTable(
        mask_id=tokenizer.mask_id,
        is_special=is_special,
        is_continuation=tokenizer.is_continuation,
        ordinary_ids=np.flatnonzero(~is_special).astype(np.int32),
    )


def _has_one_document(split: Split) -> bool:
    return bool((split.documents == split.documents[0]).all())
