"""The stream of examples is a function from rows to arrays, over one corpus or several."""

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
