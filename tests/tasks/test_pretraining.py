"""The pretraining task: exact evaluation, its baseline, and what a checkpoint must share."""

import jax
import numpy as np
import pytest
from task_evaluation import compiled_sums, initialise, run_evaluation

from bert_jax.config_file import load_config, override_config
from bert_jax.data.corpus import open_corpus
from bert_jax.errors import UserError
from bert_jax.models.flops import train_flops_per_token
from bert_jax.tasks.program import check_settings
from bert_jax.tasks.registry import load_task
from bert_jax.training.sharding import make_mesh


@pytest.fixture(scope="module")
def make_task(corpus_directory):
    def make(**settings):
        config = load_config(f"configs/pretrain.py:L1_H64,corpus={corpus_directory}")
        config.data.max_length = 32
        config.batch_size = 16
        for key, value in settings.items():
            override_config(config, key.replace("__", "."), str(value))
        return load_task(config)

    return make


def test_the_vocabulary_is_decoded_in_chunks_under_fsdp(make_task, corpus_directory):
    """1,024 rows of 64 numbers are larger than a layer, and half of them are not."""
    for settings, chunks in (
        ({}, 1),
        ({"mesh__fsdp": 2}, 2),
        ({"mesh__fsdp": -1}, 2),
        ({"mesh__fsdp": 2, "model__vocabulary_chunks": 1}, 1),
        ({"model__vocabulary_chunks": 8}, 8),
    ):
        task = make_task(**settings)
        assert task.description.config.vocabulary_chunks == chunks
        assert task.config.model.vocabulary_chunks == chunks
    config = load_config(f"configs/pretrain.py:L1_H64,corpus={corpus_directory}")
    config.mesh.fsdp, config.data.max_length = 2, 32
    del config.model["vocabulary_chunks"]  # as in a recipe from before
    assert load_task(config.lock()).description.config.vocabulary_chunks == 2


def test_chunks_change_no_score_and_no_gradient(make_task, params):
    batch = make_task().training_batch(0, slice(0, 8))

    def differentiate(chunks):
        task = make_task(model__vocabulary_chunks=chunks)
        return jax.jit(jax.grad(lambda params: task.sums(params, batch, None)["mlm_loss"].total))

    def scores(chunks):
        sums = compiled_sums(make_task(model__vocabulary_chunks=chunks))(params, batch)
        return {name: float(ratio.total) for name, ratio in sums.items()}

    assert scores(4) == pytest.approx(scores(1), rel=1e-5)
    jax.tree.map(
        lambda ours, whole: np.testing.assert_allclose(ours, whole, rtol=1e-3, atol=1e-5),
        differentiate(4)(params),
        differentiate(1)(params),
    )


@pytest.fixture(scope="module")
def params(make_task):
    return initialise(make_task())


def test_scores_do_not_depend_on_the_batch_size(make_task, params):
    size = make_task(evaluation__examples=0).validation_size(make_task().phases[0])
    uneven = next(number for number in (7, 11, 13) if size % number)  # leaves a partial batch
    first = run_evaluation(make_task(batch_size=16, evaluation__examples=0), params).sums
    second = run_evaluation(make_task(batch_size=uneven, evaluation__examples=0), params).sums
    assert first["nsp_loss"].weight == second["nsp_loss"].weight == size
    for name in first.keys() - {"tokens"}:
        assert float(first[name].mean) == pytest.approx(float(second[name].mean), rel=1e-5)


def test_the_unigram_baseline_is_that_of_the_training_split(make_task, params, corpus_directory):
    task = make_task()
    counts = open_corpus(corpus_directory).unigram_counts + 1
    log_probabilities = np.log(counts / counts.sum())
    batch = task.validation_batch(task.phases[0], 0, 16, slice(0, 16))
    used = batch["masked_weights"] > 0
    expected = -log_probabilities[batch["masked_labels"][used]].mean()
    sums = compiled_sums(task)(params, batch)
    assert float(sums["unigram_loss"].mean) == pytest.approx(expected, rel=1e-5)
    # An untrained model knows nothing; a uniform guess costs log V.
    assert float(sums["mlm_loss"].mean) == pytest.approx(np.log(1000), rel=0.05)
    assert float(sums["tokens"].total) == batch["lengths"].sum()


def test_counts_of_a_split_are_those_of_its_records(corpus_directory):
    corpus = open_corpus(corpus_directory)
    train = corpus.split("train")
    tokens = train.read(np.arange(len(train))).token_ids
    np.testing.assert_array_equal(
        np.bincount(tokens, minlength=corpus.tokenizer.size), corpus.unigram_counts
    )


def test_phases_share_the_run(make_task):
    task = make_task(
        total_steps=100,
        second_phase__share=0.1,
        second_phase__max_length=64,
        second_phase__batch_size=4,
    )
    first, second = task.phases
    assert (first.first_step, first.end_step, first.batch_size) == (0, 90, 16)
    assert (second.first_step, second.end_step, second.batch_size) == (90, 100, 4)
    assert task.phase_at(89) is first
    assert task.phase_at(90) is second
    assert task.phase_at(100) is second
    assert task.training_batch(89, slice(0, 2))["token_ids"].shape == (2, 32)
    assert task.training_batch(90, slice(0, 2))["token_ids"].shape == (2, 64)
    assert task.data_metrics(100)["data/epochs"] > task.data_metrics(90)["data/epochs"]


def test_objectives_change_heads_losses_and_nothing_else(make_task):
    for objective, losses in (
        ("nsp", {"mlm_loss", "nsp_loss"}),
        ("sop", {"mlm_loss", "sop_loss"}),
        ("none", {"mlm_loss"}),
    ):
        task = make_task(data__objective=objective)
        params = initialise(task)
        sums = compiled_sums(task)(params, task.training_batch(0, slice(0, 4)))
        values = task.metrics(sums)
        assert set(task.losses) == losses
        assert ("pooler" in params) == (objective != "none")
        assert values["loss"] == pytest.approx(sum(values[name] for name in losses), rel=1e-6)


@pytest.mark.parametrize("objective", ["none", "nsp"])
def test_packed_rows_give_the_loss_of_single_ones(make_task, objective):
    task = make_task(
        data__objective=objective,
        data__sequences_per_row=3,
        data__max_length=64,  # a chunk of the corpus is a sequence; shorter rows would cut them up
        model__hidden_dropout=0,
        model__attention_dropout=0,
    )
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        initialise(task),
    )
    # Most chunks of this corpus fill a row; take some rows that are shared.
    batch = task.training_batch(5, slice(0, 400))
    shared = np.flatnonzero(np.count_nonzero(batch["lengths"], axis=1) > 1)[:4]
    batch = {name: array[shared] for name, array in batch.items()}
    assert len(shared) == 4
    sums_of = compiled_sums(task)
    packed = sums_of(params, batch)

    totals, tokens = {name: np.zeros(2) for name in task.losses}, 0
    for row, lengths in enumerate(batch["lengths"]):
        for number, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
            masked = batch["masked_positions"][row]
            own = (masked >= end - length) & (masked < end)
            place = np.s_[row : row + 1, end - length : end]
            padding = ((0, 0), (0, 64 - length))
            alone = {
                "token_ids": np.pad(batch["token_ids"][place], padding),
                "segment_ids": np.pad(batch["segment_ids"][place], padding),
                "lengths": np.array([length]),
                "masked_positions": np.where(own, masked - (end - length), 0)[None],
                "masked_labels": batch["masked_labels"][row : row + 1],
                "masked_weights": batch["masked_weights"][row : row + 1] * own,
                "next_sentence_label": batch["next_sentence_label"][row : row + 1, number],
                "example_weights": batch["example_weights"][row : row + 1, number],
            }
            if length:
                for name, loss in sums_of(params, alone).items():
                    if name in totals:
                        totals[name] += [loss.total, loss.weight]
            tokens += length
    for name, (total, weight) in totals.items():
        np.testing.assert_allclose(packed[name].total, total, rtol=1e-5)
        assert packed[name].weight == weight
    assert packed["tokens"].total == tokens
    assert "sequences a row" in task.phases[0].description
    assert task.validation_batch(task.phases[0], 0, 4, slice(0, 4))["lengths"].shape == (4,)


def test_flops_of_shared_rows_are_those_of_their_sequences(make_task):
    task = make_task(data__max_length=64, data__sequences_per_row=3)
    rows = task._training_streams[0].rows_per_epoch()
    lengths = task.training_batch(0, slice(0, rows))["lengths"]
    tokens, share = lengths.sum(), task.config.data.masking.share
    attended = np.square(lengths).sum() / tokens
    pooled = np.count_nonzero(lengths) / tokens
    expected = train_flops_per_token(task.description.config, attended, share, share + pooled)
    assert task.flops_per_token(64) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_masking_units_are_chosen_by_the_config(make_task, unit):
    batch = make_task(data__masking__unit=unit).training_batch(0, slice(0, 4))
    assert batch["masked_weights"].any()


def test_gradients_of_the_loss_reach_every_parameter(make_task, params):
    task = make_task()
    batch = task.training_batch(0, slice(0, 16))

    @jax.jit
    @jax.grad
    def gradient(params):
        return sum(task.sums(params, batch, None)[name].total for name in task.losses)

    gradients = gradient(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_identity_names_corpus_and_vocabulary(make_task, corpus_directory):
    corpus = open_corpus(corpus_directory)
    assert make_task().identity() == {
        "corpora": [[corpus.fingerprint, 1.0]],
        "vocabulary": corpus.tokenizer.hash,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__max_length": 128}, "was prepared for"),
        ({"second_phase__share": 1.5}, "is no share"),
        ({"model__max_positions": 16}, "model.max_positions is 16"),
        ({"data__masking__unit": "wrd"}, "use one of token, word, span"),
        ({"total_steps": 0}, "epochs=0.0 leave nothing to train"),
    ],
)
def test_wrong_settings(make_task, settings, message):
    with pytest.raises(UserError, match=message):
        make_task(**settings)


@pytest.mark.parametrize("key", ["loader_workers", "second_phase.batch_size"])
def test_numbers_below_nothing(key):
    config = load_config("configs/pretrain.py:tiny")
    override_config(config, key, "-1")
    with pytest.raises(UserError, match=f"--config.{key}=-1 must be at least 0"):
        check_settings(config, make_mesh(config.mesh, jax.devices()[:1]))
