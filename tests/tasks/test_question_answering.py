"""Question answering as a task: its loss, its scores, its data."""

import json
import math

import jax
import numpy as np
import pytest
from task_evaluation import initialise, run_evaluation

from bert_jax.config_file import load_config, override_config
from bert_jax.data.question_windows import make_windows
from bert_jax.data.questions import read_questions
from bert_jax.data.tokenizer import SPECIAL_TOKENS
from bert_jax.errors import UserError
from bert_jax.models.description import ModelDescription
from bert_jax.tasks.base import Start
from bert_jax.tasks.registry import load_task

WORDS = ["ann", "bob", "cat", "dog", "ran", "sat", "who", "?", "."]
RNG = np.random.default_rng(0)


def make_squad(articles, impossible):
    """Articles of one or two paragraphs, long and short, with two questions each."""
    data, number = [], 0
    for article in range(articles):
        paragraphs = []
        for _ in range(1 + article % 2):
            words = RNG.choice(WORDS[:6], RNG.integers(4, 40)).tolist()
            context = " ".join(words)
            qas = []
            for _ in range(2):
                at = int(RNG.integers(0, len(words) - 1))
                answer = {
                    "text": " ".join(words[at : at + 2]),
                    "answer_start": len(" ".join([*words[:at], ""])),
                }
                has_answer = not impossible or number % 3
                qas.append(
                    {
                        "id": f"q{articles}-{number}",
                        "question": "who ran ?",
                        "answers": [answer] * bool(has_answer),
                    }
                )
                number += 1
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"article {article}", "paragraphs": paragraphs})
    return {"version": "v", "data": data}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]))
    for version in ("v1", "v2"):
        for name, articles in (("train", 6), ("validation", 5)):
            squad = make_squad(articles, version == "v2")
            (directory / f"{name}-{version}.json").write_text(json.dumps(squad))
    return directory


@pytest.fixture(scope="module")
def make_task(files):
    def make(version="v1", start=None, **settings):
        config = load_config(f"configs/squad.py:{version}")
        defaults = {
            "size": "L1_H64",
            "vocabulary": files / "vocab.txt",
            "data__tfds": "",
            "data__train": files / f"train-{version}.json",
            "data__validation": files / f"validation-{version}.json",
            "data__max_length": 24,
            "data__stride": 6,
            "data__max_question_length": 4,
            "batch_size": 8,
        }
        for key, value in (defaults | settings).items():
            override_config(config, key.replace("__", "."), str(value))
        return load_task(config, *([] if start is None else [start]))

    return make


def true_outputs(task, strength=20.0):
    """Scores that mark the true positions, as an evaluation gives them; nothing without answer."""
    size = task.validation_size(task.phases[0])
    batch = task.validation_batch(task.phases[0], 0, size, slice(0, size))
    columns = np.arange(batch["token_ids"].shape[1])
    scores = {}
    for name in ("start", "end"):
        positions = batch[f"{name}_positions"][:, None]
        scores[name] = np.where((columns == positions) & (positions > 0), strength, 0.0)
    return scores


def answers_of(task, outputs):
    return {row["id"]: row["prediction"] for row in task.predictions(outputs)}


def test_the_loss_is_the_mean_of_two_cross_entropies_over_real_tokens(make_task):
    task = make_task()
    params = initialise(task)
    size = task.validation_size(task.phases[0]) - 3
    batch = task.validation_batch(task.phases[0], 1, size, slice(0, 8))
    assert batch["example_weights"].sum() == 3  # the other rows fill the batch up
    scores = np.asarray(jax.jit(task.apply)(params, batch), np.float64)
    losses = []
    for row in range(3):
        length = batch["lengths"][row]
        for target, name in enumerate(("start_positions", "end_positions")):
            real = scores[row, :length, target]
            losses.append(np.log(np.exp(real).sum()) - real[batch[name][row]])
    sums = jax.jit(lambda p, b: task.sums(p, b, None))(params, batch)
    assert float(sums["loss"].mean) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(sums["loss"].weight) == 3


def test_true_positions_give_the_true_answers(make_task, files):
    task = make_task()
    questions = read_questions(files / "validation-v1.json")
    outputs = true_outputs(task)
    assert task.scores(outputs) == {"exact_match": 100.0, "f1": 100.0}
    predictions = task.predictions(outputs)
    assert [p["id"] for p in predictions] == [question.id for question in questions]
    for question, prediction in zip(questions, predictions, strict=True):
        assert prediction["prediction"] == question.answers[0]
        assert prediction["no_answer_score"] == 0
        best = prediction["candidates"][0]
        assert best["text"] == question.answers[0]
        assert question.context.startswith(best["text"], best["start"])


def test_questions_without_an_answer(make_task, files):
    task = make_task("v2", answers__no_answer_threshold=-1.0)
    questions = read_questions(files / "validation-v2.json")
    nothing = [question.id for question in questions if question.is_impossible]
    assert 0 < len(nothing) < len(questions)
    outputs = true_outputs(task)
    perfect = {
        name: 100.0
        for kind in ("", "has_answer_", "no_answer_", "best_")
        for name in (f"{kind}exact_match", f"{kind}f1")
    }
    scores = task.scores(outputs)
    assert {name: scores[name] for name in perfect} == perfect
    # Of spans that score 0 one is found, and "no answer" scores 0 too.
    assert scores["best_f1_threshold"] == -40.0
    never = make_task("v2", answers__no_answer_threshold=1.0).scores(outputs)
    assert never["no_answer_exact_match"] == 0.0 and never["has_answer_f1"] == 100.0
    assert never["exact_match"] == pytest.approx(100 * (1 - len(nothing) / len(questions)))
    assert never["best_f1"] == 100.0
    empty = [id for id, text in answers_of(task, outputs).items() if not text]
    assert empty == nothing


def test_scores_do_not_depend_on_the_batch(make_task):
    task = make_task("v2")
    params = initialise(task)
    whole = run_evaluation(task, params, 64)
    assert len(whole.outputs["start"]) == task.validation_size(task.phases[0])
    parts = run_evaluation(task, params, 5)
    scores = task.scores(whole.outputs)
    assert task.scores(parts.outputs) == pytest.approx(scores, abs=1e-4)
    assert answers_of(task, parts.outputs) == answers_of(task, whole.outputs)
    assert parts.sums["loss"].mean == pytest.approx(whole.sums["loss"].mean, rel=1e-5)


def test_what_predictions_need_is_in_the_description(make_task):
    task = make_task("v2", answers__no_answer_threshold=1.5, answers__max_answer_length=7)
    described = ModelDescription.from_json(task.assets()["model.json"])
    assert described == task.description
    assert described.max_length == 24
    assert described.options == {
        "stride": 6,
        "max_question_length": 4,
        "max_answer_length": 7,
        "candidates": 20,
        "can_be_impossible": True,
        "no_answer_threshold": 1.5,
    }
    start = Start(task.assets(), task.identity(), trains=False)
    assert make_task("v2", start=start, data__train="nowhere.json").identity() == task.identity()


def test_articles_are_not_divided_between_the_splits(make_task, files):
    task = make_task(data__validation="", data__validation_share=0.3)
    questions = {question.id: question for question in read_questions(files / "train-v1.json")}
    kept = set(answers_of(task, true_outputs(task)))
    titles = {questions[id].title for id in kept}
    assert len(titles) == 2  # of six, rounded up
    assert kept == {id for id, question in questions.items() if question.title in titles}
    learnt = make_windows(
        [question for id, question in questions.items() if id not in kept],
        task.tokenizer,
        max_length=24,
        stride=6,
        max_question_length=4,
    )
    assert task.config.total_steps == round(3 * len(learnt) / 8)


def test_answers_without_any_token_are_plain_json(make_task, tmp_path):
    paragraph = {"context": "\u200b", "qas": [{"id": "x", "question": "who ?", "answers": []}]}
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    task = make_task("v2", data__validation=path)
    result = run_evaluation(task, initialise(task))
    assert all(map(math.isfinite, task.scores(result.outputs).values()))
    (prediction,) = task.predictions(result.outputs)
    assert prediction["prediction"] == "" and prediction["no_answer_score"] is None
    json.dumps(prediction, allow_nan=False)


def test_data_that_cannot_be_used(make_task, files):
    with pytest.raises(UserError, match="has no answer; give it one, or allow questions"):
        make_task("v1", data__validation=files / "validation-v2.json")
    twice = f"{files / 'validation-v1.json'},{files / 'validation-v1.json'}"
    with pytest.raises(UserError, match=r"have questions of one id; .* rename them"):
        make_task("v1", data__validation=twice)
    with pytest.raises(UserError, match="too few training rows to keep some apart"):
        make_task("v1", data__validation="", data__validation_share=0.99)
    with pytest.raises(UserError, match="max_answer_length is 0; give at least 1"):
        make_task("v1", answers__max_answer_length=0)
    with pytest.raises(UserError, match="no version 'v3'; choose v1 or v2"):
        make_task("v3")
