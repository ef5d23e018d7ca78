"""The stream of examples is a function from rows to arrays, over one corpus or several."""

import collections
import functools

import numpy as np
import pytest

from bert_jax.data.corpus import open_corpus
from bert_jax.data.examples import ExampleStream
from bert_jax.data.masking import MaskingOptions
from bert_jax.data.pairs import Objective, PairOptions
from bert_jax.data.preparation import PrepareOptions, prepare_corpus
from bert_jax.data.rows import pad_batch
from bert_jax.errors import UserError

LENGTH = 64


@pytest.fixture(scope="module")
def corpus(corpus_directory):
    return open_corpus(corpus_directory)


def make_stream(corpora, weights=(1.0,), seed=0, objective=Objective.NEXT_SENTENCE, split="train"):
    return ExampleStream(
        [corpus.split(split) for corpus in corpora],
        weights,
        corpora[0].tokenizer,
        PairOptions(LENGTH, objective),
        MaskingOptions(LENGTH),
        seed=seed,
        purpose="test",
    )


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def unmask(batch):
    """The tokens before masking."""
    ids = batch["token_ids"].copy()
    rows, places = np.nonzero(batch["masked_weights"])
    ids[rows, batch["masked_positions"][rows, places]] = batch["masked_labels"][rows, places]
    return ids


def test_a_row_does_not_depend_on_its_batch(corpus):
    stream = make_stream([corpus])
    whole = stream.batch(1000, 48)
    for first, rows in ((1000, 16), (1016, 31), (1047, 1)):
        part = stream.batch(first, rows)
        expected = {name: array[first - 1000 :][:rows] for name, array in whole.items()}
        assert_equal(part, expected)
    assert_equal(make_stream([corpus]).batch(1000, 48), whole)
    assert (make_stream([corpus], seed=1).batch(1000, 48)["token_ids"] != whole["token_ids"]).any()


def test_epochs_differ_in_order_pairs_and_masks_and_see_the_same_text(corpus):
    stream = make_stream([corpus], objective=Objective.NONE)
    size = stream.epoch_sizes()[0]
    first, second = stream.batch(0, size), stream.batch(size, size)

    def text(batch):
        return sorted(map(bytes, unmask(batch)))

    assert text(first) == text(second)  # every record once an epoch
    assert (unmask(first) != unmask(second)).any()
    order = np.argsort([bytes(row) for row in unmask(first)])
    order_again = np.argsort([bytes(row) for row in unmask(second)])
    masks = first["masked_positions"][order] == second["masked_positions"][order_again]
    assert masks.all(axis=1).mean() < 0.05


def test_half_of_the_labels_are_random_and_every_weight_is_one(corpus):
    batch = make_stream([corpus]).batch(0, 5000)
    assert abs(batch["next_sentence_label"].mean() - 0.5) < 0.02
    assert (batch["example_weights"] == 1).all()
    assert batch["masked_weights"].sum() > 0.14 * batch["lengths"].sum()


def test_a_mixture_draws_by_weight_and_never_pairs_across_corpora(
    corpus, text_directory, tmp_path_factory
):
    directory = tmp_path_factory.mktemp("second") / "corpus"
    options = PrepareOptions(
        vocabulary=str(corpus.directory), max_length=LENGTH, validation_share=0.3, workers=0
    )
    other = prepare_corpus([str(text_directory / "[a-d]*.txt")], directory, options)
    stream = make_stream([corpus, other], (0.75, 0.25))
    alone = make_stream([corpus])
    assert abs(stream.counts(8192)[0] - 0.75 * 8192) <= 1
    batch = stream.batch(0, 64)
    assert len(batch["lengths"]) == 64
    assert stream.counts(64).sum() == 64
    assert (batch["token_ids"] != alone.batch(0, 64)["token_ids"]).any()


def test_one_document_is_refused_for_next_sentences_only(tmp_path, corpus):
    text = "\n".join(f"This is sentence number {n} of the only document." for n in range(200))
    (tmp_path / "one.txt").write_text(text)
    options = PrepareOptions(
        vocabulary=str(corpus.directory), max_length=LENGTH, validation_share=0.0, workers=0
    )
    one = prepare_corpus([str(tmp_path / "one.txt")], tmp_path / "corpus", options)
    with pytest.raises(UserError, match="only one document"):
        make_stream([one])
    assert make_stream([one], objective=Objective.SENTENCE_ORDER).batch(0, 8)["lengths"].all()


def test_padding_has_no_tokens_and_no_weight(corpus):
    batch = make_stream([corpus]).batch(0, 3)
    padded = pad_batch(batch, 8)
    assert_equal({name: array[:3] for name, array in padded.items()}, batch)
    assert all((array[3:] == 0).all() for array in padded.values())


def packed_stream(corpora, weights=(1.0,), length=LENGTH, objective=Objective.NONE):
    return ExampleStream(
        [corpus.split("train") for corpus in corpora],
        weights,
        corpora[0].tokenizer,
        PairOptions(length, objective, sequences_per_row=4),
        MaskingOptions(length),
        seed=0,
        purpose="test",
    )


def sequences_of(batch):
    """The texts of packed rows, before masking."""
    for row, lengths in zip(unmask(batch), batch["lengths"], strict=True):
        ends = np.cumsum(lengths)
        yield from (
            row[end - length : end] for end, length in zip(ends, lengths, strict=True) if length
        )
        assert not row[ends[-1] :].any()


@pytest.mark.parametrize("length", [LENGTH, 24])  # 24: a chunk has several sequences
def test_packed_rows_hold_the_sequences_of_unpacked_ones(corpus, length):
    stream = packed_stream([corpus], length=length)
    batch = stream.batch(100, 40)
    assert batch["token_ids"].shape == (40, length) and batch["lengths"].shape == (40, 4)
    assert batch["lengths"].sum(axis=1).max() <= length
    assert length < LENGTH or stream.packing.sequences_per_row > 1
    singles = ExampleStream(
        [corpus.split("train")],
        (1.0,),
        corpus.tokenizer,
        PairOptions(length, Objective.NONE),
        MaskingOptions(length),
        seed=0,
        purpose="test",
    )
    rows = singles.batch(0, singles.epoch_sizes()[0])
    texts = [row[1 : n - 1] for row, n in zip(unmask(rows), rows["lengths"], strict=True)]
    starts = {bytes(text[:2]) for text in texts}
    tokenizer = corpus.tokenizer
    for sequence in sequences_of(batch):
        assert sequence[0] == tokenizer.cls_id and sequence[-1] == tokenizer.sep_id
        assert bytes(sequence[1:3]) in starts
    if length == LENGTH:  # each chunk is one sequence, whole
        assert {bytes(s[1:-1]) for s in sequences_of(batch)} <= {bytes(text) for text in texts}


@pytest.mark.parametrize("objective", [Objective.NEXT_SENTENCE, Objective.SENTENCE_ORDER])
def test_packed_pairs_are_those_of_unpacked_rows(corpus, objective):
    singles, tokenizer = make_stream([corpus], objective=objective), corpus.tokenizer
    rows = singles.batch(0, singles.epoch_sizes()[0])
    # Of what the text of this machine repeats, the same tokens may be in order and swapped.
    labels_of = collections.defaultdict(set)
    for row, length, label in zip(
        unmask(rows), rows["lengths"], rows["next_sentence_label"], strict=True
    ):
        labels_of[bytes(row[:length])].add(int(label))
    assert np.mean([len(found) == 1 for found in labels_of.values()]) > 0.98
    stream = packed_stream([corpus], objective=objective)
    batch = stream.batch(0, stream.rows_per_epoch())
    is_one = batch["lengths"] > 0
    assert batch["lengths"].sum(axis=1).max() <= LENGTH
    assert not batch["next_sentence_label"][~is_one].any()
    np.testing.assert_array_equal(batch["example_weights"], is_one)
    sequences = list(sequences_of(batch))
    assert len(sequences) > len(batch["lengths"])
    # All are there; where the plan knows a shorter bound, the pair is cut otherwise.
    assert len(sequences) == pytest.approx(singles.epoch_sizes()[0], rel=0.01)
    same = [bytes(sequence) in labels_of for sequence in sequences]
    assert np.mean(same) > 0.8
    labels = batch["next_sentence_label"][is_one]
    for sequence, label, known in zip(sequences, labels, same, strict=True):
        assert not known or label in labels_of[bytes(sequence)]
        assert sequence[0] == tokenizer.cls_id and sequence[-1] == tokenizer.sep_id
        assert np.count_nonzero(sequence == tokenizer.sep_id) == 2
    assert labels.mean() == pytest.approx(0.5, abs=0.1)
    ends = np.cumsum(batch["lengths"], axis=1)[is_one]
    for row, end, sequence in zip(np.nonzero(is_one)[0], ends, sequences, strict=True):
        segments = batch["segment_ids"][row, end - len(sequence) : end]
        middle = int(np.flatnonzero(sequence == tokenizer.sep_id)[0])
        assert segments.tolist() == [0] * (middle + 1) + [1] * (len(sequence) - middle - 1)


@pytest.mark.parametrize("length", [LENGTH, 24])  # 24: a chunk has several windows
@pytest.mark.parametrize("objective", list(Objective))
def test_no_sequence_is_longer_than_the_plan_supposes(corpus, objective, length):
    stream = packed_stream([corpus, corpus], (0.3, 0.7), length, objective)
    numbers = np.arange(1000, 3000)
    longest, lengths = stream._longest_lengths(numbers), stream._build(numbers)["lengths"]
    assert (lengths <= longest).all() and (longest <= length).all()
    if objective is Objective.SENTENCE_ORDER:
        # Whole sentences leave room, and how much depends on the text of this machine.
        assert (lengths / longest).mean() > 0.6
        assert (lengths == longest).any()
    else:
        assert (lengths == longest).mean() > 0.1


@pytest.mark.parametrize("objective", [Objective.NONE, Objective.NEXT_SENTENCE])
def test_what_packing_comes_to_is_what_rows_hold(corpus, objective):
    stream = packed_stream([corpus], objective=objective)
    lengths = stream.batch(0, stream.rows_per_epoch())["lengths"]
    assert stream.packing.efficiency == pytest.approx(
        lengths.sum() / len(lengths) / LENGTH, rel=0.03
    )
    assert stream.packing.sequences_per_row == pytest.approx(
        np.count_nonzero(lengths) / len(lengths), rel=0.03
    )
    assert stream.packing.mean_length == pytest.approx(lengths[lengths > 0].mean(), rel=0.03)
    attended = np.square(lengths).sum() / lengths.sum()
    assert stream.packing.attended_length == pytest.approx(attended, rel=0.03)


@pytest.mark.parametrize("objective", [Objective.NONE, Objective.NEXT_SENTENCE])
def test_a_packed_row_does_not_depend_on_its_batch(corpus, objective):
    stream_of = functools.partial(packed_stream, objective=objective)
    stream = stream_of([corpus, corpus], (0.3, 0.7))
    end = stream.rows_per_epoch()  # where a window ends
    whole = stream.batch(end - 30, 60)
    for first, rows in ((end - 30, 20), (end - 10, 39), (end + 29, 1)):
        expected = {name: array[first - end + 30 :][:rows] for name, array in whole.items()}
        assert_equal(stream_of([corpus, corpus], (0.3, 0.7)).batch(first, rows), expected)
    everything = stream.batch(0, end)
    # A process may be asked for a row that holds nothing.
    for row in np.flatnonzero(everything["lengths"].sum(axis=1) == 0)[:2].tolist():
        assert not stream.batch(row, 1)["masked_weights"].any()
    counts = stream.counts(8192)
    assert counts[0] / counts.sum() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("objective", "frame"), [(Objective.NONE, 2), (Objective.NEXT_SENTENCE, 3)]
)
def test_no_special_token_of_a_packed_row_is_masked(corpus, objective, frame):
    batch = packed_stream([corpus], objective=objective).batch(0, 200)
    labels = batch["masked_labels"][batch["masked_weights"] > 0]
    assert not np.isin(labels, list(corpus.tokenizer.special_ids)).any()
    maskable = batch["lengths"].sum() - frame * np.count_nonzero(batch["lengths"])
    assert len(labels) / maskable == pytest.approx(0.15, abs=0.01)


def test_a_row_holds_a_sequence_at_least():
    with pytest.raises(UserError, match="sequences_per_row is 0; give 1"):
        PairOptions(LENGTH, Objective.NONE, sequences_per_row=0)
