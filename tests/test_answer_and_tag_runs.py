"""Models of answers and tags from files to the command line: they learn, are scored, and answer."""

import json

import numpy as np
import pytest

from bert_jax.data.tokenizer import SPECIAL_TOKENS

pytestmark = pytest.mark.slow
COLOURS, ANIMALS = ("red", "green", "blue", "pink"), ("cat", "dog", "cow", "owl")
FILLERS = ("the", "old", "sat", "near", "by", "what", "colour", "animal", "?")
SETTINGS = (
    "--config.size=L2_H64",
    "--config.batch_size=32",
    "--config.data.max_length=24",
    "--config.optimizer.learning_rate=3e-3",
    "--config.log_every_steps=20",
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *COLOURS, *ANIMALS, *FILLERS]))
    return f"--config.vocabulary={path}"


def make_text(random):
    """Some words, with one colour and one animal among them."""
    words = random.choice(FILLERS[:5], random.integers(4, 10)).tolist()
    kinds = {"colour": str(random.choice(COLOURS)), "animal": str(random.choice(ANIMALS))}
    for word in kinds.values():
        words.insert(random.integers(len(words) + 1), word)
    return words, kinds


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def check_run(run_program, read_numbers, workdir, config, *settings):
    """Trains; gives the last scores, and checks that evaluation gives the same."""
    trained = run_program("train", "--config", config, "--workdir", str(workdir), *settings)
    assert trained.returncode == 0, trained.stderr
    scores = read_numbers(workdir)[-1]
    evaluated = run_program("evaluate", "--workdir", str(workdir), "--batch_size", "5", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads(evaluated.stdout)
    for name in ("loss", "f1"):
        assert scores[f"validation/{name}"] == pytest.approx(found[name], abs=1e-4)
    return scores


def test_answers_are_learnt(tmp_path, vocabulary, run_program, read_numbers):
    random = np.random.default_rng(0)
    rows = []
    for number in range(600):
        words, kinds = make_text(random)
        answers = {"text": [kinds["colour"]], "answer_start": [0]}
        if number % 3 == 0:
            words.remove(kinds["colour"])
            answers = {"text": [], "answer_start": []}
        else:
            before = words[: words.index(kinds["colour"])]
            answers["answer_start"] = [len(" ".join([*before, ""]))]
        rows.append(
            {
                "id": str(number),
                "question": "what colour ?",
                "context": " ".join(words),
                "answers": answers,
            }
        )
    files = (write(tmp_path / "a.jsonl", rows[:500]), write(tmp_path / "b.jsonl", rows[500:]))
    scores = check_run(
        run_program,
        read_numbers,
        tmp_path / "run",
        "configs/squad.py:v2",
        *SETTINGS,
        vocabulary,
        "--config.data.tfds=",
        f"--config.data.train={files[0]}",
        f"--config.data.validation={files[1]}",
        "--config.data.max_question_length=8",
        "--config.total_steps=120",
    )
    # Always to say the colour that there is, or that there is none, gives 67 and 33.
    assert scores["validation/exact_match"] > 80
    assert scores["validation/best_f1"] >= scores["validation/f1"]
    said = run_program(
        *("predict", "answer", "--checkpoint", str(tmp_path / "run"), "--input", str(files[1])),
        "--json",
    )
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [row["id"] for row in rows[500:]]
    exact = [
        a["prediction"] in (r["answers"]["text"] or [""])
        for a, r in zip(answers, rows[500:], strict=True)
    ]
    assert 100 * np.mean(exact) == pytest.approx(scores["validation/exact_match"], abs=1.01)


def test_tags_are_learnt(tmp_path, vocabulary, run_program, read_numbers):
    random = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        words, kinds = make_text(random)
        names = {word: f"B-{kind.upper()}" for kind, word in kinds.items()}
        rows.append({"tokens": words, "ner_tags": [names.get(word, "O") for word in words]})
    scores = check_run(
        run_program,
        read_numbers,
        tmp_path / "run",
        "configs/tag.py",
        *SETTINGS,
        vocabulary,
        f"--config.data.train={write(tmp_path / 'a.jsonl', rows)}",
        "--config.total_steps=40",
    )
    assert scores["validation/f1"] > 0.9
    said = run_program(
        *("predict", "tag", "--checkpoint", str(tmp_path / "run"), "The old Owl sat by red."),
    )
    assert said.stdout.splitlines() == ["The old Owl sat by red.", "  ANIMAL  Owl", "  COLOUR  red"]
