import json
import random

import jax
import numpy as np
import pytest
from random_params import random_params

from bert_jax.data.tables import Table
from bert_jax.errors import UserError
from bert_jax.models.description import Head
from bert_jax.tasks.base import Start
from bert_jax.tasks.choice import choice_numbers, choice_predictions, choices_of
from bert_jax.tasks.registry import load_task

ROWS = [
    {"context": "red cat", "choices": ["one", "two dog", "right"], "label": 2},
    {"context": "blue", "choices": ["dog", "right cow"], "label": "right cow"},
    {"context": "green cow", "choices": ["right", "wrong"], "label": "A"},
    {"context": "two", "choices": ["cat", "dog", "right one"], "label": 2},
]


@pytest.fixture(params=["cls", "mean"])
def task(request, write_rows, tiny_config):
    path = write_rows("rows.jsonl", ROWS)
    data = {"train": path, "validation": path}
    made = load_task(tiny_config("choose.py", data, pooling=request.param))
    assert made.description.reads_mean == (request.param == "mean")
    return made


def test_every_choice_stands_in_its_context(task):
    batch = task.validation_batch(task.phases[0], 0, 6, slice(0, 6))
    assert batch["token_ids"].shape[:2] == (6, 3)
    rows = [
        [task.tokenizer.decode(row[row != task.tokenizer.pad_id]) for row in choices]
        for choices in batch["token_ids"]
    ]
    assert ["[CLS] blue [SEP] dog [SEP]", "[CLS] blue [SEP] right cow [SEP]", ""] in rows
    assert rows[4:] == [["", "", ""]] * 2
    assert batch["example_weights"].tolist() == [1, 1, 1, 1, 0, 0]
    assert task.description.head is Head.CHOICE


def test_the_loss_is_cross_entropy_over_the_choices_that_there_are(task):
    params = random_params(task.initialise)
    batch = task.validation_batch(task.phases[0], 0, 5, slice(0, 5))
    step = jax.jit(lambda params: (task.sums(params, batch, None), task.outputs(params, batch)))
    sums, outputs = jax.device_get(step(params))
    total, right = 0.0, 0
    places = np.argsort([int(place) for place in task._order])  # of each row in the batch
    for row, label in enumerate([2, 1, 0, 2]):
        scores = outputs["scores"][places[row]][: len(ROWS[row]["choices"])].astype(np.float64)
        total += np.log(np.exp(scores).sum()) - scores[label]
        right += scores.argmax() == label
    assert sums["loss"].total == pytest.approx(total, rel=1e-5)
    assert sums["loss"].weight == sums["accuracy"].weight == 4
    assert sums["accuracy"].total == right
    outputs = {name: array[:4] for name, array in outputs.items()}
    assert task.scores(outputs) == {"accuracy": right / 4}
    predictions = task.predictions(outputs)
    assert [len(p["probabilities"]) for p in predictions] == [3, 2, 2, 3]
    for prediction in predictions:
        assert sum(prediction["probabilities"]) == pytest.approx(1)
        assert prediction["prediction"] == np.argmax(prediction["probabilities"])


def test_questions_stand_before_choices_and_alone_in_place_of_a_context(write_rows, tiny_config):
    rows = [{"q": "two", "a": "cat", "b": "dog", "c": "blue", "label": i % 2} for i in range(3)]
    path = write_rows("rows.jsonl", rows)
    columns = {"train": path, "validation": path, "question": "q", "choices": "a, b"}
    decoded = {}
    for context in ("c", ""):
        task = load_task(tiny_config("choose.py", columns | {"context": context}))
        batch = task.training_batch(0, slice(0, 1))
        row = batch["token_ids"][0, 1]
        decoded[context] = task.tokenizer.decode(row[row != task.tokenizer.pad_id])
    assert decoded == {
        "c": "[CLS] blue [SEP] two dog [SEP]",
        "": "[CLS] two [SEP] dog [SEP]",
    }


def test_labels_may_be_numbers_letters_or_texts():
    choices = [["0", "1", "B"], ["x", "y", "z"]]

    def number(label, row=1):
        table = Table(["here"], {"label": [label]}, {})
        numbers, known = choice_numbers(table, "label", choices[row : row + 1])
        return int(numbers[0]) if known[0] else None

    assert [number(label) for label in (1, "1", "B", "y")] == [1, 1, 1, 1]
    assert [number(label, row=0) for label in ("1", "C", 2)] == [1, 2, 2]
    assert [number(label) for label in (-1, "-1", None, "")] == [None] * 4
    no_column = choice_numbers(Table(["here"], {}, {}), "label", choices[:1])
    assert not no_column[1].any()


def test_choices_that_are_numbers_may_be_named_by_either_if_the_column_tells():
    choices = [["8", "2", "24"], ["7", "5", "6"], ["0", "1", "2"]]

    def numbers(*labels):
        rows = Table([f"line {row}" for row in range(len(labels))], {"label": list(labels)}, {})
        return choice_numbers(rows, "label", choices[: len(labels)])[0].tolist()

    assert numbers("24", "7", "1") == [2, 0, 1]  # 24 is no number of a choice
    assert numbers("2", "0", "1") == [2, 0, 1]  # 0 is no choice of the second row
    assert numbers("2", "7", "1") == [1, 0, 1]
    assert numbers(2, 0, 1) == [2, 0, 1]
    with pytest.raises(UserError, match="line 0 has '2' .* one of its choices, and the number"):
        numbers("2")


@pytest.mark.parametrize("label", [3, "3", "D", "w", 1.5, True, "²", "α"])
def test_a_label_out_of_range_is_told_with_its_place(label):
    table = Table(["rows.jsonl, line 7"], {"label": [label]}, {})
    with pytest.raises(UserError, match="rows.jsonl, line 7 has .* 0 to 2"):
        choice_numbers(table, "label", [["x", "y", "z"]])


@pytest.mark.parametrize("value", [["x"], [], "x", ["x", 1], None, {"text": ["x", "y"]}])
def test_rows_without_two_texts_to_choose_from_are_refused(value):
    table = Table(["rows.jsonl, line 7"], {"choices": [value]}, {})
    with pytest.raises(UserError, match="rows.jsonl, line 7 has"):
        choices_of(table, ["choices"])


def test_validation_without_labels_cannot_choose_a_checkpoint(write_rows, tiny_config):
    train = write_rows("train.jsonl", ROWS)
    hidden = write_rows("test.jsonl", [row | {"label": -1} for row in ROWS])
    config = tiny_config("choose.py", {"train": train, "validation": hidden})
    with pytest.raises(UserError, match="no labels in the column 'label'"):
        load_task(config)


def test_hidden_labels_are_predicted_and_not_scored(task, write_rows):
    hidden = write_rows("test.jsonl", [row | {"label": -1} for row in ROWS])
    config = task.config.copy_and_resolve_references()
    config.data.validation = str(hidden)
    scored = load_task(config, Start(task.assets(), task.identity(), trains=False))
    outputs = {"scores": np.float32([[0, 1, 2], [1, 0, -1e9], [0, 1, -1e9], [0, 2, 1]])}
    assert scored.scores(outputs) == {}
    in_order = scored.in_order_of_data(outputs)["scores"]
    assert scored.predictions(outputs) == choice_predictions(in_order)


@pytest.mark.slow
def test_a_marked_choice_is_learnt(tmp_path, write_rows, vocabulary_file, run_program):
    draw = random.Random(0)

    def row():
        others = draw.choices(["red cat", "green dog", "blue cow", "one", "two"], k=3)
        label = draw.randrange(4)
        return {
            "context": draw.choice(["cat", "dog"]),
            "choices": [*others[:label], f"{others[0]} right", *others[label:]],
            "label": label,
        }

    train = write_rows("train.jsonl", [row() for _ in range(200)])
    validation = write_rows("validation.jsonl", [row() for _ in range(50)])
    workdir = tmp_path / "run"
    settings = {
        "vocabulary": vocabulary_file,
        "data.train": train,
        "data.validation": validation,
        "data.max_length": 16,
        "total_steps": 40,
        "optimizer.learning_rate": 1e-2,
        **{f"model.{key}": value for key, value in {"layers": 1, "width": 32, "heads": 2}.items()},
        "model.feed_forward_width": 64,
        "model.max_positions": 16,
    }
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    config = ("--config", "configs/choose.py", "--workdir", str(workdir))
    done = run_program("train", *config, *arguments)
    assert done.returncode == 0, done.stderr
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation/accuracy"] > 0.95
