"""Tagging as a task: its loss, its scores, its data."""

import json

import jax
import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from task_evaluation import compiled_sums, initialise, run_evaluation

from bert_jax.config_file import load_config, override_config
from bert_jax.data.tokenizer import SPECIAL_TOKENS
from bert_jax.errors import UserError
from bert_jax.tasks.base import Start
from bert_jax.tasks.registry import load_task

WORDS = ["ann", "##e", "bob", "ran", "to", "rome", "."]
RNG = np.random.default_rng(0)
TAGS = {"anne": "B-PER", "bob": "B-PER", "rome": "B-LOC"}


def make_sentences(count):
    sentences = []
    for number in range(count):
        words = RNG.choice(["ann", "anne", "bob", "ran", "to", "rome", "."], 1 + number % 19)
        tags = [TAGS.get(word, "O") for word in words.tolist()]
        sentences.append((words.tolist(), tags))
    return sentences


SENTENCES = {"train": make_sentences(40), "validation": make_sentences(23)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]))
    for name, sentences in SENTENCES.items():
        lines = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in sentences]
        (directory / f"{name}.jsonl").write_text("\n".join(lines))
        blocks = ["".join(f"{w} X {t}\n" for w, t in zip(*s, strict=True)) for s in sentences]
        (directory / f"{name}.conll").write_text("\n".join(blocks))
    return directory


@pytest.fixture(scope="module")
def make_task(files):
    def make(start=None, **settings):
        config = load_config("configs/tag.py")
        defaults = {
            "size": "L1_H64",
            "vocabulary": files / "vocab.txt",
            "data__train": files / "train.jsonl",
            "data__validation": files / "validation.jsonl",
            "data__max_length": 16,  # some sentences take several windows
            "batch_size": 8,
        }
        for key, value in (defaults | settings).items():
            override_config(config, key.replace("__", "."), str(value))
        return load_task(config, *([] if start is None else [start]))

    return make


def true_outputs(task):
    """The true labels, as an evaluation gives them."""
    size = task.validation_size(task.phases[0])
    return {"labels": task.validation_batch(task.phases[0], 0, size, slice(0, size))["labels"]}


def test_the_loss_is_the_cross_entropy_of_words(make_task):
    task = make_task()
    params = initialise(task)
    size = task.validation_size(task.phases[0]) - 2
    batch = task.validation_batch(task.phases[0], 1, size, slice(0, 4))
    assert batch["example_weights"].tolist() == [1, 1, 0, 0]
    logits = np.asarray(jax.jit(task.apply)(params, batch), np.float64)
    losses, right = [], []
    for row, column in np.argwhere(batch["label_weights"] > 0):
        label = batch["labels"][row, column]
        real = logits[row, column]
        losses.append(np.log(np.exp(real).sum()) - real[label])
        right.append(real.argmax() == label)
    sums = jax.jit(lambda p, b: task.sums(p, b, None))(params, batch)
    assert float(sums["loss"].weight) == len(losses) > 2
    assert float(sums["loss"].mean) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(sums["accuracy"].mean) == pytest.approx(np.mean(right))


def test_packed_rows_give_the_loss_of_single_ones(make_task):
    """An epoch of so few sentences is packed without leaving any out."""
    shared = {"model__hidden_dropout": 0, "model__attention_dropout": 0, "data__max_length": 32}
    packed = make_task(data__sequences_per_row=4, **shared)
    single = make_task(**shared)
    rng = np.random.default_rng(1)
    params = jax.tree.map(  # or all words would score alike
        lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), initialise(single)
    )
    whole = single.read("train")
    rows = whole.rows(np.arange(len(whole)), 32)
    expected = compiled_sums(single)(params, rows | {"example_weights": np.ones(len(whole))})
    count = round(len(whole) / packed.packing.sequences_per_row)
    epoch = make_task(data__sequences_per_row=4, batch_size=count, **shared)
    batch = epoch.training_batch(0, slice(0, count))
    assert batch["labels"].shape == (count, 32) and batch["lengths"].shape == (count, 4)
    assert np.count_nonzero(batch["lengths"]) == len(whole) > count
    found = compiled_sums(epoch)(params, batch)
    for name, ratio in expected.items():
        np.testing.assert_allclose(found[name].total, ratio.total, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(found[name].weight, ratio.weight, err_msg=name)


def test_true_labels_give_the_true_tags(make_task):
    task = make_task()
    assert task.labels == ("O", "B-LOC", "B-PER")
    assert task.validation_size(task.phases[0]) > len(SENTENCES["validation"])
    outputs = true_outputs(task)
    assert task.scores(outputs) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    tags = [tags for _, tags in SENTENCES["validation"]]
    assert task.predictions(outputs) == [
        {"words": words, "prediction": tags} for words, tags in SENTENCES["validation"]
    ]
    entities = task.details(outputs)["entities"]
    found = {name: scores["support"] for name, scores in entities.items()}
    assert found == {name: sum(t.count(f"B-{name}") for t in tags) for name in ("LOC", "PER")}


def test_scores_do_not_depend_on_the_batch_and_are_seqeval_s(make_task):
    task = make_task()
    params = initialise(task)
    whole, parts = (run_evaluation(task, params, size) for size in (64, 7))
    scores = task.scores(whole.outputs)
    assert task.scores(parts.outputs) == scores
    for name in ("loss", "accuracy"):
        assert parts.sums[name].mean == pytest.approx(whole.sums[name].mean, rel=1e-5)
    predicted = [prediction["prediction"] for prediction in task.predictions(whole.outputs)]
    expected = [tags for _, tags in SENTENCES["validation"]]
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert scores[name] == score(expected, predicted, zero_division=0)


def test_a_sentence_without_words_keeps_its_place(make_task, tmp_path):
    sentences = [SENTENCES["validation"][0], ([], []), SENTENCES["validation"][4]]
    lines = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in sentences]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    task = make_task(data__validation=tmp_path / "some.jsonl")
    result = run_evaluation(task, initialise(task), 4)
    predictions = task.predictions(result.outputs)
    assert [row["words"] for row in predictions] == [words for words, _ in sentences]
    assert predictions[1]["prediction"] == []


def test_every_format_gives_the_same_task(make_task, files):
    columns = {f"data__{name}": files / f"{name}.conll" for name in SENTENCES}
    assert make_task(**columns).identity() == make_task().identity()
    swapped = make_task(data__tokens=1, data__tags=2, **columns)
    assert swapped.labels == make_task().labels and swapped.identity() != make_task().identity()


def test_labels_are_those_of_training_and_are_remembered(make_task, tmp_path):
    path = tmp_path / "more.jsonl"
    path.write_text(json.dumps({"tokens": ["bob", "ann"], "ner_tags": ["B-NEW", "O"]}))
    task = make_task(data__validation=path)
    batch = task.validation_batch(task.phases[0], 0, 1, slice(0, 1))
    assert batch["label_weights"].sum() == 1  # B-NEW is not in the loss, but in the scores
    assert task.details({"labels": batch["labels"]})["entities"]["NEW"]["support"] == 1
    start = Start(task.assets(), task.identity(), trains=False)
    again = make_task(start=start, data__train="nowhere.jsonl")
    assert again.labels == task.labels == again.description.labels


def test_sentences_alike_are_not_divided_between_the_splits(make_task):
    task = make_task(data__validation="", data__validation_share=0.5)
    kept = {tuple(found["words"]) for found in task.predictions(true_outputs(task))}
    alike = [words for words, _ in SENTENCES["train"] if tuple(words) in kept]
    assert len(alike) == len(task.predictions(true_outputs(task)))
    assert len(kept) == -(-len({tuple(words) for words, _ in SENTENCES["train"]}) // 2)


def test_data_that_cannot_be_used(make_task, tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"tokens": ["bob"], "ner_tags": ["O"]}))
    with pytest.raises(UserError, match="has the tag O, so there is nothing to learn"):
        make_task(data__train=path)
    path.write_text("")
    with pytest.raises(
        UserError, match="has no examples; give others with --config.data.validation"
    ):
        make_task(data__validation=path)
    with pytest.raises(UserError, match="names no column of .*; give a key"):
        make_task(data__tags=3)
