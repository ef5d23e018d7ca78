"""Scoring a checkpoint on any split, and the files of predictions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import evaluate
from bert_jax.config_file import load_config, override_config
from bert_jax.data.tokenizer import SPECIAL_TOKENS
from bert_jax.errors import UserError
from bert_jax.formats.predictions import write_predictions
from bert_jax.tasks.registry import load_task
from bert_jax.training.checkpoints import Checkpoints, RunRecord
from bert_jax.training.sharding import unbox
from bert_jax.training.state import TrainState

WORDS = ["good", "bad", "fine", "day", "night", "sea"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier with random weights, of data with several splits."""
    directory = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]))
    for name, size in (("train", 30), ("validation", 21), ("test", 13), ("hidden", 5)):
        rows = [
            {"idx": size - row, "text": " ".join(rng.choice(WORDS, rng.integers(1, 6)))}
            | ({} if name == "hidden" else {"label": ["bad", "good"][row % 2]})
            for row in range(size)
        ]
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = load_config("configs/classify.py")
    for key, value in {
        "size": "L2_H64",
        # It was trained on a GPU; any device will do here.
        "model.attention": "triton",
        "model.residual_norm": "triton",
        "model.gelu": "triton",
        "model.compute_dtype": "bfloat16",
        "vocabulary": directory / "vocab.txt",
        "data.train": directory / "train.jsonl",
        "data.validation": directory / "validation.jsonl",
        "data.test": directory / "test.jsonl",
        "data.index": "idx",
        "data.max_length": 8,
        "batch_size": 8,
    }.items():
        override_config(config, key, str(value))
    task = load_task(config)
    params = jax.jit(lambda key: unbox(task.initialise(key)))(jax.random.key(1))
    record = RunRecord(3, task.config.to_dict(), task.identity(), task.assets(), {}, [])
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(TrainState(jnp.asarray(3), params, None), record)
    (directory / "train.jsonl").unlink()  # what is not needed need not be there
    return directory


def test_every_split_is_scored_whatever_the_batch_size(run, capsys):
    validation = evaluate.evaluate_checkpoint(run, "latest")
    test = evaluate.evaluate_checkpoint(run, "latest", split="test")
    assert len(validation.predictions) == 21
    assert len(test.predictions) == 13
    again = evaluate.evaluate_checkpoint(run, "3", 5, data=str(run / "test.jsonl"))
    assert again.values == pytest.approx(test.values, rel=1e-5)
    rows = [json.loads(line) for line in (run / "test.jsonl").read_text().splitlines()]
    right = [row["label"] == p["prediction"] for row, p in zip(rows, test.predictions, strict=True)]
    assert test.values["accuracy"] == np.mean(right)
    matrix = np.array(test.details["confusion_matrix"])
    assert matrix.sum() == 13 and np.trace(matrix) == sum(right)

    assert evaluate.main(["--workdir", str(run), "--split", "test"]) == 0
    printed = capsys.readouterr().out
    assert f"accuracy {test.values['accuracy']:.4f}" in " ".join(printed.split())
    header, first, second = printed.splitlines()[-3:]
    assert header.split() == ["truth", "\\", "predicted", "bad", "good"]
    assert first.split() == ["bad", *map(str, matrix[0])]
    assert second.split() == ["good", *map(str, matrix[1])]
    evaluate.main(["--workdir", str(run), "--split", "test", "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "step": 3,
        **test.values,
        "details": {"labels": ["bad", "good"], "confusion_matrix": matrix.tolist()},
    }


def test_predictions_of_rows_without_labels(run, tmp_path, capsys):
    hidden = ["--workdir", str(run), "--data", str(run / "hidden.jsonl")]
    with pytest.raises(UserError, match="no labels, so there is nothing to score"):
        evaluate.main(hidden)
    assert evaluate.main([*hidden, "--predictions", str(tmp_path / "p.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{run}, step 3\nwrote 5 predictions to {tmp_path / 'p.jsonl'}\n"
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [5, 4, 3, 2, 1]
    for row in rows:
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
    evaluate.main([*hidden, "--predictions", str(tmp_path / "p.tsv"), "--json"])
    assert capsys.readouterr().out == '{"step": 3}\n'
    lines = [line.split("\t") for line in (tmp_path / "p.tsv").read_text().splitlines()]
    answers = {str(row["index"]): row["prediction"] for row in rows}
    assert lines == [["index", "prediction"], *([key, answers[key]] for key in "12345")]
    evaluate.main([*hidden, "--predictions", str(tmp_path / "p.json")])
    assert json.loads((tmp_path / "p.json").read_text()) == answers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--examples", "3"], "scored whole; leave --examples out"),
        (["--data", "gone.jsonl"], "gone.jsonl"),
        (["--predictions", "p.csv"], "end it in .jsonl, .tsv, .json"),
        (["--predictions", "nowhere/p.tsv"], "the directory nowhere does not exist"),
        (["--predictions", "tests.jsonl"], "tests.jsonl is a directory"),
        (["--split", "test", "--data", "x"], "not allowed with"),
        (["--data", ","], "there are no data to validate on"),
    ],
)
def test_what_cannot_be_scored(run, arguments, message, tmp_path, monkeypatch):
    (tmp_path / "tests.jsonl").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        evaluate.main(["--workdir", str(run), *arguments])


def test_other_rows_are_not_taken_for_those_of_the_run(run):
    path = run / "validation.jsonl"
    before = path.read_text()
    expected = evaluate.evaluate_checkpoint(run, "latest").values
    path.write_text("\n".join(before.splitlines()[1:]))
    try:
        with pytest.raises(UserError, match=r"have changed since step 3 \(validation\); restore"):
            evaluate.evaluate_checkpoint(run, "latest")
        others = evaluate.evaluate_checkpoint(run, "latest", data=str(path))
    finally:
        path.write_text(before)
    assert len(others.predictions) == 20 and others.values != expected


def test_what_a_prediction_holds_keeps_its_line(tmp_path):
    rows = [{"index": 1, "prediction": "a\tb\nc"}, {"index": 0, "prediction": [0.5, "d"]}]
    write_predictions(tmp_path / "p.tsv", rows)
    assert (tmp_path / "p.tsv").read_text() == 'index\tprediction\n0\t[0.5, "d"]\n1\ta b c\n'
    rows = [{"index": 0, "id": "q7", "prediction": "é"}]
    write_predictions(tmp_path / "p.json", rows)
    assert (tmp_path / "p.json").read_text() == '{"q7": "é"}\n'


def test_scores_are_told_though_the_predictions_cannot_be_written(run, tmp_path, capsys):
    rows = [{"idx": 1, "text": "sea", "label": label} for label in ("bad", "good")]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["--workdir", str(run), "--data", str(tmp_path / "two.jsonl"), "--json"]
    with pytest.raises(UserError, match="two rows have the index 1"):
        evaluate.main([*data, "--predictions", str(tmp_path / "p.tsv")])
    assert json.loads(capsys.readouterr().out)["accuracy"] == 0.5


def test_a_score_that_is_no_number_is_null_in_json(run, capsys, monkeypatch):
    scored = evaluate.Scored(3, {"loss": 0.5, "pearson": float("nan")}, {}, [])
    monkeypatch.setattr(evaluate, "evaluate_checkpoint", lambda *_, **__: scored)
    evaluate.main(["--workdir", str(run), "--json"])
    assert json.loads(capsys.readouterr().out) == {"step": 3, "loss": 0.5, "pearson": None}


def test_an_index_may_be_what_a_format_has_no_place_for(tmp_path):
    rows = [{"index": {"paragraph": 1}, "prediction": "a"}]
    write_predictions(tmp_path / "p.jsonl", rows)
    assert json.loads((tmp_path / "p.jsonl").read_text()) == rows[0]
    with pytest.raises(UserError, match="the index {'paragraph': 1}, which .* no form for"):
        write_predictions(tmp_path / "p.tsv", rows)


def test_two_rows_of_one_index_are_refused(tmp_path):
    with pytest.raises(UserError, match="two rows have the index 0"):
        write_predictions(tmp_path / "p.tsv", [{"index": 0, "prediction": "a"}] * 2)
    assert not list(tmp_path.iterdir())
