"""Whole runs on rows of many lengths: killed and gone on, and on any mesh, they learn the same."""

import json
import signal

import numpy as np
import pytest
from interruption import kill_at
from layouts import MESHES, assert_finished, assert_same, every_layout, mesh_flags

from bert_jax.data.tokenizer import SPECIAL_TOKENS

pytestmark = pytest.mark.slow
WORDS = ("good", "bad", "the", "film", "was", "and", "long", "very", "not", "at", "all")


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory):
    """Arguments of a run on texts of few or of many words; some are kept for validation."""
    directory = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        # So unlike that even a few steps are worth a compilation for each.
        count = random.integers(90, 110) if random.random() < 0.15 else random.integers(1, 5)
        words = random.choice(WORDS, count).tolist()
        rows.append({"text": " ".join(words), "label": words.count("good") > words.count("bad")})
    data, vocabulary = directory / "rows.jsonl", directory / "vocab.txt"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    vocabulary.write_text("\n".join([*SPECIAL_TOKENS, *WORDS]))
    return (
        *("--config", "configs/classify.py", "--config.size=L1_H128"),
        *(f"--config.vocabulary={vocabulary}", f"--config.data.train={data}"),
        *("--config.data.max_length=128", "--config.batch_size=16", "--config.total_steps=12"),
        *("--config.optimizer.learning_rate=1e-3", "--config.log_every_steps=1"),
        "--config.checkpoint_every_steps=5",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, fine_tuning, run_program, read_numbers):
    """The metrics of a run on one device that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    finished = run_program("train", *fine_tuning, "--workdir", str(workdir))
    assert finished.returncode == 0, finished.stderr
    # Several lengths, or the tests below would show nothing.
    assert finished.stderr.count(": compiled") >= 2
    records = read_numbers(workdir)
    assert [record["step"] for record in records] == list(range(1, 13))
    return records


def test_a_killed_run_equals_one_that_was_not(
    tmp_path, fine_tuning, whole, run_program, start_program, read_numbers
):
    command = ("train", *fine_tuning, "--workdir", str(tmp_path))
    process = start_program(*command)
    kill_at(process, 8, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    again = run_program(*command)
    assert again.returncode == 0, again.stderr
    assert "changed at" not in again.stderr
    assert read_numbers(tmp_path) == whole


def test_a_metric_that_there_is_not_costs_no_update(tmp_path, fine_tuning, whole, run_program):
    command = ("train", *fine_tuning, "--workdir", str(tmp_path))
    refused = run_program(*command, "--config.selection=mcc")
    assert refused.returncode == 2
    assert "--config.selection='mcc' is no metric of this task" in refused.stderr
    again = run_program(*command)
    assert again.returncode == 0, again.stderr
    assert "going on from step 12" in again.stderr
    assert again.stderr.count(": compiled") == 0
    assert "; changed at step 12: selection mcc -> accuracy\n" in again.stderr  # and nothing else
    scored = json.loads((tmp_path / "result.json").read_text())
    assert scored["values"]["accuracy"] == whole[-1]["validation/accuracy"]


@pytest.mark.parametrize("processes, mesh", every_layout([(2, MESHES[-1])]))
def test_what_is_learnt_does_not_depend_on_the_layout(
    tmp_path, fine_tuning, whole, start_processes, read_numbers, processes, mesh
):
    arguments = (*fine_tuning, "--workdir", str(tmp_path), *mesh_flags(mesh))
    assert_finished(start_processes(processes, 8 // processes, *arguments))
    assert_same(read_numbers(tmp_path), whole)
