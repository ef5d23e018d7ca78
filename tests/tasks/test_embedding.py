import json
import random

import jax
import numpy as np
import pytest
from random_params import random_params
from scipy import stats

from bert_jax.errors import UserError
from bert_jax.models.description import Head, Pooling
from bert_jax.models.ranking_loss import ranking_loss_sum
from bert_jax.tasks.registry import load_task
from bert_jax.tasks.retrieval_scores import score_retrieval

PAIRS = [
    {"text": "red cat", "second_text": "one", "other": "two", "label": 5},
    {"text": "blue", "second_text": "dog right cow", "other": "one one", "label": 0},
    {"text": "green cow cat", "second_text": "one", "other": "red", "label": 2.5},
    {"text": "two", "second_text": "cat", "other": "dog", "label": 1},
    {"text": "wrong", "second_text": "cow cow", "other": "blue", "label": 3},
]


@pytest.fixture
def make_task(write_rows, tiny_config):
    def make(data=None, rows=PAIRS, **settings):
        path = write_rows("rows.jsonl", rows)
        files = {"train": path, "validation": path}
        return load_task(tiny_config("embed.py", files | (data or {}), **settings))

    return make


def _whole_split(task, size):
    """Sums and outputs of the validation split in batches of a size."""
    params = random_params(task.initialise)
    step = jax.jit(lambda batch: (task.sums(params, batch, None), task.outputs(params, batch)))
    parts = [
        jax.device_get(step(task.validation_batch(task.phases[0], number, size, slice(0, size))))
        for number in range(-(-len(PAIRS) // size))
    ]
    outputs = {
        name: np.concatenate([part[name] for _, part in parts])[: len(PAIRS)]
        for name in ("embeddings", "text_numbers")
    }
    return [sums for sums, _ in parts], outputs


def test_ranking_takes_the_batch_and_is_scored_on_the_whole_split(make_task):
    unlabelled = [{name: row[name] for name in ("text", "second_text")} for row in PAIRS]
    task = make_task(rows=unlabelled, symmetric=True)
    assert task.selection == "mean_reciprocal_rank" and task.higher_is_better
    [sums], outputs = _whole_split(task, 8)
    vectors = outputs["embeddings"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    expected = jax.jit(ranking_loss_sum, static_argnames=("scale", "symmetric"))(
        vectors, outputs["text_numbers"], np.ones(5, np.float32), scale=20.0, symmetric=True
    )
    np.testing.assert_allclose([sums["loss"].total, sums["loss"].weight], expected, rtol=1e-4)
    scores = task.scores(outputs)
    assert scores == pytest.approx(score_retrieval(vectors, outputs["text_numbers"], 20.0))
    # The batch's size is no matter, though the loss of each batch depends on it.
    _, others = _whole_split(task, 2)
    assert task.scores(others) == pytest.approx(scores, rel=1e-4)


def test_similarity_learns_the_label_as_a_cosine(make_task):
    data = {"objective": "similarity", "label_range": (0.0, 5.0)}
    task = make_task(data, accumulation_steps=2)
    assert task.selection == "spearman"
    [sums], outputs = _whole_split(task, 8)
    vectors = task.in_order_of_data(outputs)["embeddings"]
    cosines = (vectors[:, 0] * vectors[:, 1]).sum(axis=-1)
    labels = np.array([row["label"] / 5 for row in PAIRS])
    assert sums["loss"].total == pytest.approx(np.square(cosines - labels).sum(), rel=1e-4)
    assert sums["loss"].weight == 5
    scores = task.scores(outputs)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(cosines, labels).statistic)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(cosines, labels).statistic, abs=1e-3)
    predictions = [row["prediction"] for row in task.predictions(outputs)]
    np.testing.assert_allclose(predictions, cosines, rtol=1e-5)


def test_hard_negatives_are_of_training_only(make_task):
    task = make_task({"negative": "other"}, pooling="cls", normalize=False)
    assert task.training_batch(0, slice(0, 4))["token_ids"].shape[:2] == (4, 3)
    assert task.validation_batch(task.phases[0], 0, 4, slice(0, 4))["lengths"].shape == (4, 2)
    assert task.selection == "spearman"  # the rows have labels, whatever is learnt
    described = task.description
    assert described.head is Head.NONE and not described.pooler
    assert described.pooling is Pooling.CLS and not described.normalize


@pytest.mark.parametrize(
    "data, settings, message",
    [
        ({}, {"accumulation_steps": 2}, "accumulation_steps=2 would split the batch"),
        (
            {"objective": "cosent"},
            {},
            "data.objective='cosent' is unknown; use one of ranking, sim",
        ),
        ({}, {"pooling": "max"}, "pooling='max' is unknown; use one of mean, cls"),
        ({}, {"scale": 0.0}, "scale=0.0 must be above 0"),
        ({"objective": "similarity", "negative": "other"}, {}, "data.negative='other' has no use"),
        ({"objective": "similarity"}, {}, r"rows.jsonl, line 1 has 5 in .* from 0 to 1"),
        ({"objective": "similarity", "label": "score"}, {}, "no column 'score'"),
        ({"second_text": "third"}, {}, "no column 'third'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make_task, data, settings, message):
    with pytest.raises(UserError, match=message):
        make_task(data, **settings)


@pytest.mark.slow
def test_partners_are_found(tmp_path, write_rows, vocabulary_file, run_program):
    draw = random.Random(0)
    colours, animals, numbers = ("red", "green", "blue"), ("cat", "dog", "cow"), ("one", "two")
    # The partner has the same words in another order, beside one that says nothing.
    triples = [(c, a, n) for c in colours for a in animals for n in numbers]
    rows = [
        {"text": f"{c} {a} {n}", "second_text": f"{n} {draw.choice(['right', 'wrong'])} {a} {c}"}
        for c, a, n in triples
    ]
    train = write_rows("train.jsonl", rows * 4)
    validation = write_rows("validation.jsonl", rows)
    workdir = tmp_path / "run"
    settings = {
        "vocabulary": vocabulary_file,
        "data.train": train,
        "data.validation": validation,
        "data.max_length": 16,
        "total_steps": 40,
        "batch_size": 32,
        "optimizer.learning_rate": 1e-2,
        "model.layers": 1,
        "model.width": 32,
        "model.heads": 2,
        "model.feed_forward_width": 64,
        "model.max_positions": 16,
    }
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    config = ("--config", "configs/embed.py", "--workdir", str(workdir))
    done = run_program("train", *config, *arguments)
    assert done.returncode == 0, done.stderr
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation/recall_at_1"] > 0.8
