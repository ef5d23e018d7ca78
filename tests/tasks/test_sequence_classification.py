"""Classes, labels and values of texts: read, learnt, scored in the order of the data."""

import json

import jax
import numpy as np
import pytest
from sklearn import metrics
from task_evaluation import compiled_sums, initialise, run_evaluation

from bert_jax.config_file import load_config, override_config
from bert_jax.data.corpus import open_corpus
from bert_jax.data.tokenizer import SPECIAL_TOKENS
from bert_jax.errors import UserError
from bert_jax.models.encoder import Encoder
from bert_jax.tasks.base import Start
from bert_jax.tasks.registry import load_task

WORDS = ["good", "bad", "fine", "day", "night", "sea"]
RNG = np.random.default_rng(0)


def make_text():
    return " ".join(RNG.choice(WORDS, RNG.integers(1, 20)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]))
    for name, size in (("train", 60), ("validation", 21), ("more", 10)):
        rows = [
            {
                "text": make_text(),
                "other": make_text(),
                "label": ["bad", "good", "so-so"][row % 3],
                "labels": sorted({"ab"[row % 2], "c"}),
                "value": float(row % 7),
            }
            for row in range(size)
        ]
        lines = "\n".join(map(json.dumps, rows))
        (directory / f"{name}.jsonl").write_text(lines)
    return directory


@pytest.fixture(scope="module")
def make_task(files):
    def make(recipe="classify", start=None, **settings):
        config = load_config(f"configs/{recipe}.py")
        defaults = {
            "size": "L1_H64",
            "vocabulary": files / "vocab.txt",
            "data__train": files / "train.jsonl",
            "data__validation": files / "validation.jsonl",
            "data__max_length": 32,
            "batch_size": 8,
        }
        for key, value in (defaults | settings).items():
            override_config(config, key.replace("__", "."), str(value))
        return load_task(config, *([] if start is None else [start]))

    return make


def test_scores_are_those_of_the_rows_one_by_one(make_task, files):
    task = make_task()
    params = initialise(task)
    rows = [json.loads(line) for line in (files / "validation.jsonl").read_text().splitlines()]
    expected = []
    apply = jax.jit(task.apply)
    for row in rows:
        ids = [2, *task.tokenizer.encode_batch([row["text"]])[0], 3]
        tokens = np.array([ids], np.int32)
        batch = {
            "token_ids": np.pad(tokens, ((0, 0), (0, 32 - len(ids)))),
            "segment_ids": np.zeros((1, 32), np.int32),
            "lengths": np.array([len(ids)], np.int32),
        }
        expected.append(np.asarray(apply(params, batch))[0])
    truth = [task.labels.index(row["label"]) for row in rows]
    predicted = np.argmax(expected, axis=-1)
    for size in (5, 8, 21):
        result = run_evaluation(task, params, size)
        scores = task.scores(result.outputs)
        assert scores["accuracy"] == metrics.accuracy_score(truth, predicted)
        assert scores["macro_f1"] == metrics.f1_score(
            truth, predicted, average="macro", zero_division=0
        )
        in_order = task.in_order_of_data(result.outputs)["scores"]
        np.testing.assert_allclose(in_order, expected, atol=1e-5)
        assert result.sums["loss"].weight == 21
    details = task.details(result.outputs)
    assert np.sum(details["confusion_matrix"]) == 21
    predictions = task.predictions(result.outputs)
    assert [p["prediction"] for p in predictions] == [task.labels[i] for i in predicted]
    assert sum(predictions[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_labels_are_those_of_training_and_are_remembered(make_task):
    task = make_task()
    assert task.labels == ("bad", "good", "so-so")
    start = Start(task.assets(), task.identity(), trains=False)
    again = make_task(start=start, data__train="nowhere.jsonl")
    assert again.labels == task.labels
    assert again.identity() == task.identity()
    with pytest.raises(UserError, match="has the label 'so-so', which training never saw"):
        make_task(data__labels=("bad", "good"))


def test_resuming_reads_the_encoder_from_its_checkpoint(make_task):
    task = make_task(model__hidden_dropout=0.3)
    assert task.config.model.width == 64
    again = make_task(start=Start(task.assets(), task.identity()), vocabulary="", size="")
    assert again.description == task.description
    with pytest.raises(UserError, match="there is no encoder to fine-tune"):
        make_task(vocabulary="", size="")
    with pytest.raises(UserError, match="needs a size"):
        make_task(size="")
    with pytest.raises(UserError, match="max_length=600 is more than the 512 positions"):
        make_task(data__max_length=600)


def test_epochs_become_steps_and_validation_rows_are_kept_apart(make_task):
    assert make_task(epochs=2.0).config.total_steps == 15
    assert make_task(total_steps=7).config.total_steps == 7
    task = make_task(data__validation="", data__validation_share=0.25)
    assert task.validation_size(task.phases[0]) == 15
    assert task.config.total_steps == round(3 * 45 / 8)
    with pytest.raises(UserError, match="no data to validate on"):
        make_task(data__validation="", data__validation_share=0.0)
    for epochs in (0.0, -3.0):
        with pytest.raises(UserError, match=f"epochs={epochs} leave nothing to train"):
            make_task(epochs=epochs)


def test_pairs_and_several_validation_files(make_task, files):
    both = f"{files / 'validation.jsonl'},{files / 'more.jsonl'}"
    task = make_task(data__second_text="other", data__validation=both)
    result = run_evaluation(task, initialise(task))
    scores = task.scores(result.outputs)
    assert task.validation_size(task.phases[0]) == 31
    assert {"accuracy", "more_accuracy", "macro_f1", "more_macro_f1"} <= scores.keys()
    batch = task.training_batch(0, slice(0, 4))
    assert batch["segment_ids"].max() == 1
    mixed = (scores["accuracy"] * 21 + scores["more_accuracy"] * 10) / 31
    assert mixed == pytest.approx(task.metrics(result.sums)["accuracy"])
    # An adapter's file holds the description, and no config.
    assert task.description.pairs is True
    assert make_task().description.pairs is False


def test_files_of_one_name_are_scored_apart(make_task, files, tmp_path):
    for name in ("dev.en.jsonl", "dev.de.jsonl", "dev.fr.jsonl"):
        (tmp_path / name).write_text((files / "more.jsonl").read_text())
    names = ",".join(str(tmp_path / f"dev.{name}.jsonl") for name in ("en", "de", "fr"))
    task = make_task(data__validation=names)
    assert [name for name, _ in task.parts()] == [
        *("", f"{tmp_path}/dev.de.jsonl_", f"{tmp_path}/dev.fr.jsonl_"),
    ]


@pytest.mark.parametrize("kind", ["classification", "multi_label"])
def test_labels_of_rows_that_are_kept_apart_are_classes_too(make_task, tmp_path, kind):
    path = tmp_path / "rare.csv"
    lines = [f"good,class {row}\n" for row in range(10)]
    path.write_text("".join(["text,label\n", *lines]))
    task = make_task(
        task=kind,
        data__train=path,
        data__validation="",
        data__validation_share=0.2,
    )
    assert task.labels == tuple(f"class {row}" for row in range(10))
    scores = task.scores(run_evaluation(task, initialise(task)).outputs)
    assert 0 <= scores["accuracy"] <= 1


def test_class_weights_weigh_the_loss(make_task):
    task = make_task(class_weights="(1.0, 2.0, 0.0)")
    params = initialise(task)
    batch = task.training_batch(0, slice(0, 8))
    logits = np.asarray(jax.jit(task.apply)(params, batch), np.float64)
    nll = metrics_log_loss(logits, batch["targets"])
    weights = np.array([1.0, 2.0, 0.0])[batch["targets"]]
    sums = jax.jit(lambda p, b: task.sums(p, b, None))(params, batch)
    assert float(sums["loss"].mean) == pytest.approx((weights * nll).sum() / weights.sum(), 1e-5)
    for wrong in ("(1.0, 2.0)", "2", "(1.0, -1.0, 0.0)", "even", "(1.0, 2.0, 'x')"):
        with pytest.raises(UserError, match="from 0 up for each of the 3 classes"):
            make_task(class_weights=wrong)
    with pytest.raises(UserError, match="this task is multi_label; leave them out"):
        make_task(task="multi_label", data__label="labels", class_weights="balanced")


def test_class_weights_leave_validation_alone(make_task):
    weighted, plain = make_task(class_weights="(1.0, 2.0, 0.0)"), make_task()
    params = initialise(plain)
    expected = run_evaluation(plain, params).sums["loss"]
    assert run_evaluation(weighted, params).sums["loss"] == expected
    start = Start(weighted.assets(), weighted.identity(), trains=False)
    again = make_task(start=start, class_weights="(1.0, 2.0, 0.0)")
    assert run_evaluation(again, params).sums["loss"] == expected


def metrics_log_loss(logits, targets):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -log_probabilities[np.arange(len(targets)), targets]


def test_several_labels(make_task):
    task = make_task(task="multi_label", data__label="labels", selection="macro_f1")
    assert task.labels == ("a", "b", "c")
    params = initialise(task)
    batch = task.validation_batch(task.phases[0], 2, 8, slice(0, 8))  # three rows are padding
    logits = np.asarray(jax.jit(task.apply)(params, batch), np.float64)
    probabilities = 1 / (1 + np.exp(-logits))
    targets = batch["targets"]
    losses = -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))
    sums = jax.jit(lambda p, b: task.sums(p, b, None))(params, batch)
    assert float(sums["loss"].mean) == pytest.approx(losses[:5].mean(), 1e-5)
    result = run_evaluation(task, params)
    assert task.scores(result.outputs).keys() >= {"accuracy", "macro_f1", "micro_precision"}
    assert set(task.predictions(result.outputs)[0]["prediction"]) <= set(task.labels)


def test_values(make_task):
    task = make_task("regress", data__label="value")
    params = initialise(task)
    result = run_evaluation(task, params)
    scores = task.scores(result.outputs)
    values = task.in_order_of_data(result.outputs)["scores"][:, 0]
    truth = np.arange(21) % 7
    assert scores["pearson"] == pytest.approx(np.corrcoef(truth, values)[0, 1], abs=1e-5)
    assert scores["mse"] == pytest.approx(np.square(truth - values).mean(), 1e-5)
    assert task.metrics(result.sums)["loss"] == pytest.approx(scores["mse"], 1e-5)
    with pytest.raises(UserError, match="where a number should stand"):
        make_task("regress", data__label="label")


def test_one_label_only_is_refused(make_task, files, tmp_path):
    path = tmp_path / "same.jsonl"
    path.write_text('{"text": "good", "label": "x"}\n' * 3)
    with pytest.raises(UserError, match="have one label only, 'x'"):
        make_task(data__train=path)
    path.write_text('{"text": "good", "label": null}\n' * 3)
    with pytest.raises(UserError, match="have no labels in the column 'label'"):
        make_task(data__train=path)
    path.write_text('{"text": "good", "label": []}\n' * 3)
    with pytest.raises(UserError, match="have no labels in the column 'label'"):
        make_task(task="multi_label", data__train=path)


def test_hidden_values_are_not_scored(make_task, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"text": "good", "value": -1.0}\n{"text": "bad", "value": 2.0}\n')
    start_from = make_task("regress", data__label="value")
    start = Start(start_from.assets(), start_from.identity(), trains=False)
    settings = {"data__label": "value", "data__validation": path, "start": start}
    for hidden, weight in ((None, 2), (-1.0, 1)):
        task = make_task("regress", data__hidden_label=hidden, **settings)
        assert run_evaluation(task, initialise(task)).sums["loss"].weight == weight


def test_the_vocabulary_of_a_corpus_will_do(make_task, corpus_directory):
    task = make_task(vocabulary=str(corpus_directory))
    assert task.tokenizer.hash == open_corpus(corpus_directory).tokenizer.hash


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("classify", {}),
        ("classify", {"task": "multi_label", "data__label": "labels"}),
        ("regress", {"data__label": "value", "pooling": "mean"}),
    ],
)
def test_packed_rows_give_the_loss_of_single_ones(make_task, recipe, settings):
    shared = {"model__hidden_dropout": 0, "model__attention_dropout": 0, **settings}
    packed = make_task(recipe, data__sequences_per_row=6, **shared)
    single = make_task(recipe, batch_size=1, **shared)
    rng = np.random.default_rng(1)
    params = jax.tree.map(  # or all texts would score alike
        lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), initialise(packed)
    )
    batch = packed.training_batch(3, slice(2, 8))
    assert batch["token_ids"].shape == (6, 32) and batch["lengths"].shape == (6, 6)
    assert "sequences a row" in packed.phases[0].description
    found = compiled_sums(packed)(params, batch)

    # The same rows, told by their tokens and targets, one by one.
    training = single.read("train")
    everything = training.rows(np.arange(len(training)), 32)
    known = list(map(bytes, everything["token_ids"]))
    known = [
        text + bytes(target) for text, target in zip(known, everything["targets"], strict=True)
    ]
    numbers = []
    for row, lengths in enumerate(batch["lengths"]):
        for place, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
            if length:
                text = np.zeros(32, np.int32)
                text[:length] = batch["token_ids"][row, end - length : end]
                numbers.append(known.index(bytes(text) + bytes(batch["targets"][row, place])))
    assert len(numbers) > 6
    rows = training.rows(np.array(numbers), 32) | {"example_weights": np.ones(len(numbers))}
    expected = compiled_sums(single)(params, rows)
    for name, ratio in expected.items():
        np.testing.assert_allclose(found[name].total, ratio.total, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(found[name].weight, ratio.weight, err_msg=name)


def test_the_mean_of_all_positions_may_be_read(make_task):
    first, mean = make_task(), make_task(pooling="mean")
    assert (first.description.reads_mean, mean.description.reads_mean) == (False, True)
    params = initialise(mean)
    assert initialise(first).keys() - params.keys() == {"pooler"}
    batch = mean.training_batch(0, slice(0, 4))
    hidden = Encoder(mean.encoder).apply(
        {"params": params["encoder"]},
        *(batch[name] for name in ("token_ids", "segment_ids", "lengths")),
        deterministic=True,
    )
    read = [row[:length].mean(axis=0) for row, length in zip(hidden, batch["lengths"], strict=True)]
    classifier = params["classifier"]
    expected = np.stack(read) @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(mean.outputs(params, batch)["scores"], expected, atol=1e-5)
    with pytest.raises(UserError, match="pooling='max' is unknown; use one of mean, cls"):
        make_task(pooling="max")


def test_packing_shortens_the_epoch(make_task):
    packed = make_task(data__sequences_per_row=6)
    rows = packed.config.total_steps * packed.config.batch_size
    assert rows < 3 * 60 / 1.5
    # Scored as many at a time by the run as afterwards.
    start = Start(packed.assets(), packed.identity(), trains=False)
    scoring = make_task(start=start, data__sequences_per_row=6)
    [trained], [scored] = packed.phases, scoring.phases
    assert trained.evaluated_at_once == scored.evaluated_at_once
    assert 8 < scored.evaluated_at_once <= 6 * 8 and scored.evaluated_at_once % 8 == 0


def test_what_adapts_an_encoder_leaves_it_as_it_is(make_task):
    with pytest.raises(UserError, match="reinitialise_layers=1 changes the encoder that LoRA"):
        make_task(model__lora_rank=2, reinitialise_layers=1)


def test_a_run_and_all_its_processes_have_the_same_validation_rows(make_task, files):
    task, other = make_task(), make_task(data__validation=files / "more.jsonl")
    assert task.identity() == make_task().identity()
    differing = {name for name, value in task.identity().items() if other.identity()[name] != value}
    assert differing == {"validation"}
