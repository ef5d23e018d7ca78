"""Runs of the real program: they finish, stop, are killed, go on, and say what is wrong."""

import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from interruption import kill_at
from toy_task import CircleClassifier

from bert_jax.config_file import load_config
from bert_jax.train import main, train
from bert_jax.training.checkpoints import Checkpoints
from bert_jax.training.preemption import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preemption
from bert_jax.training.workdir import Workdir

TOY = ("--config", "tests/toy_task.py")
pytestmark = pytest.mark.slow


def saved_steps(workdir: Path) -> list[int]:
    """Steps with a complete checkpoint; one that was being written has a longer name."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def test_a_second_task_trains_evaluates_and_resumes(
    tmp_path, run_program, start_program, read_numbers
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished = run_program("train", *TOY, "--workdir", str(whole))
    assert finished.returncode == 0, finished.stderr
    assert "report.html" in finished.stderr
    records = read_numbers(whole)
    assert [record["step"] for record in records] == list(range(1, 61))
    assert records[-1]["validation/accuracy"] > 0.9

    # Killed ten times, each time a little later, and once told to stop in good order.
    for step in (3, 11, 12, 19, 24, 31, 33, 40, 47, 52):
        process = start_program("train", *TOY, "--workdir", str(parts))
        kill_at(process, step, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert len(saved_steps(parts)) <= 3
    process = start_program("train", *TOY, "--workdir", str(parts))
    said = kill_at(process, 55, signal.SIGTERM)
    assert process.returncode == EXIT_PREEMPTED
    assert "stopped and saved at step" in said
    assert run_program("train", *TOY, "--workdir", str(parts)).returncode == 0
    assert read_numbers(parts) == records
    assert len(saved_steps(parts)) <= 3

    scored = run_program("evaluate", "--workdir", str(parts), "--json")
    expected = {
        key.removeprefix("validation/"): value
        for key, value in records[-1].items()
        if key.startswith("validation/")
    }
    assert json.loads(scored.stdout) == pytest.approx({"step": 60, **expected}, rel=1e-6)


def test_an_interrupted_pretraining_run_equals_one_that_was_not(
    tmp_path, run_program, start_program, small_run, read_numbers
):
    overrides = (
        "--config.total_steps=24",
        "--config.checkpoint_every_steps=5",
        "--config.evaluate_every_steps=8",
        # Both phases, with the boundary between two checkpoints.
        "--config.second_phase.share=0.25",
        "--config.second_phase.max_length=64",
        "--config.second_phase.batch_size=8",
        "--config.evaluation.examples=0",  # all, as `evaluate` takes
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished = run_program("train", *small_run(whole, *overrides))
    assert finished.returncode == 0, finished.stderr
    assert "16 × length 32: compiled" in finished.stderr
    assert "8 × length 64: compiled" in finished.stderr
    for step in (2, 7, 13, 21):
        process = start_program("train", *small_run(parts, *overrides))
        kill_at(process, step, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    process = start_program("train", *small_run(parts, *overrides))
    kill_at(process, 22, signal.SIGINT)
    assert process.returncode == EXIT_INTERRUPTED
    assert run_program("train", *small_run(parts, *overrides)).returncode == 0
    assert read_numbers(parts) == read_numbers(whole)
    assert [record["step"] for record in read_numbers(parts)] == list(range(1, 25))

    # What a stranger does next: score it, use it, start another run from it.
    scored = run_program("evaluate", "--workdir", str(whole), "--json", "--batch_size", "5")
    last = read_numbers(whole)[-1]
    assert json.loads(scored.stdout)["mlm_loss"] == pytest.approx(
        last["validation/mlm_loss"], rel=1e-5
    )
    text = "Return the [MASK] of the [MASK]."
    filled = run_program("predict", "fill-mask", "--checkpoint", str(whole), "--json", text)
    fillings = json.loads(filled.stdout)["fillings"]
    assert len(fillings) == 2
    assert all(len(filling["tokens"]) == 5 for filling in fillings)
    other = tmp_path / "other"
    more = ("--config.total_steps=1", f"--config.init_from={whole}")
    assert run_program("train", *small_run(other, *more)).returncode == 0
    first = read_numbers(other)[0]["train/mlm_loss"]
    assert abs(first - last["train/mlm_loss"]) < 0.5 * abs(
        first - read_numbers(whole)[0]["train/mlm_loss"]
    )


def test_a_workdir_is_locked_and_a_finished_run_says_so(tmp_path, run_program, start_program):
    process = start_program(
        "train", *TOY, "--workdir", str(tmp_path), "--config.total_steps=100000"
    )
    with process:
        for line in process.stdout:
            if line.startswith("step 1/"):
                break
        refused = run_program("train", *TOY, "--workdir", str(tmp_path))
        process.kill()
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: {tmp_path} is in use by another run; wait for it to end, or give another "
        "--workdir\n"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.total_stepz=3"], "did you mean --config.total_steps?"),
        (["--config.data.max_length=128"], "the length that"),
        (["--config.corpus=nowhere"], "no corpus at nowhere"),
        # Before the data are looked for, which may take long.
        (
            ["--config.batch_size=15", "--config.accumulation_steps=2", "--config.corpus=nowhere"],
            "a multiple of 2",
        ),
        (["--config.mesh.fsdp=3"], "does not fit the 1 devices"),
        (["--config.data.objective=nps"], "use one of nsp, sop, none"),
        (["--config.task=nothing"], "config.task='nothing' is no task"),
        (["--config.init_from=nowhere"], "nowhere holds no model"),
        (
            ["--config.model.attention=splash", "--config.model.attention_dropout=0.0"],
            "model.attention=splash runs on a TPU",
        ),
    ],
)
def test_wrong_settings_cost_one_line(tmp_path, run_program, small_run, overrides, message):
    workdir = tmp_path / "run"
    refused = run_program("train", *small_run(workdir, *overrides))
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert not workdir.exists()


def test_another_architecture_corpus_or_number_is_refused(
    tmp_path, run_program, small_run, text_directory
):
    assert run_program("train", *small_run(tmp_path, "--config.total_steps=2")).returncode == 0
    wider = run_program("train", *small_run(tmp_path, "--config.model.feed_forward_width=256"))
    assert wider.returncode == 2
    assert "encoder/layers/feed_forward/inner/bias is 1×512 there and 1×256 here" in wider.stderr
    fewer = run_program("train", *small_run(tmp_path, "--config.total_steps=1"))
    assert "is at step 2, past total_steps=1" in fewer.stderr
    corpus = tmp_path / "other-corpus"
    prepared = run_program(
        *("prepare", "--input", str(text_directory / "[a-m]*.txt"), "--output", str(corpus)),
        *("--vocab_size", "900", "--max_length", "64", "--workers", "0"),
        *("--validation_share", "0.2"),
    )
    assert prepared.returncode == 0, prepared.stderr
    other = run_program("train", *small_run(tmp_path, f"--config.corpus={corpus}"))
    assert other.returncode == 2
    assert "was trained with other" in other.stderr
    start = f"--config.init_from={tmp_path}"
    moved = run_program("train", *small_run(tmp_path / "new", f"--config.corpus={corpus}", start))
    assert "was trained with another vocabulary" in moved.stderr
    # What was saved is still whole.
    assert run_program("evaluate", "--workdir", str(tmp_path)).returncode == 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, run_program, small_run):
    overrides = (
        "--config.total_steps=20",
        "--config.checkpoint_every_steps=1",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.warmup_share=0.3",
    )
    stopped = run_program("train", *small_run(tmp_path, *overrides))
    assert stopped.returncode == 2
    assert "lower --config.optimizer.learning_rate" in stopped.stderr
    # The update to step 1 is of rate 0, that to step 2 ruins the parameters.
    assert "is not finite at step 3; the last good checkpoint is that of step 1" in stopped.stderr
    assert "remove 2 from its checkpoints" in stopped.stderr


def test_an_unwritable_workdir(tmp_path, run_program):
    (tmp_path / "file").write_text("")
    refused = run_program("train", *TOY, "--workdir", str(tmp_path / "file" / "run"))
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_program_that_has_used_jax_trains(tmp_path):
    jax.devices()
    command = ["--config", "tests/toy_task.py", "--config.total_steps=2", "--workdir"]
    for name in ("first", "second"):
        assert main([*command, str(tmp_path / name)]) == 0
        assert (tmp_path / name / "report.html").exists()


def test_compiled_programs_are_kept_beside_the_run(tmp_path, start_program):
    environment = {"JAX_COMPILATION_CACHE_DIR": None}
    command = ("train", *TOY, "--workdir", str(tmp_path / "run"), "--config.total_steps=1")
    with start_program(*command, environment=environment) as process:
        said = process.stdout.read()
    assert process.returncode == 0, said
    assert list((tmp_path / ".compiled").glob("jit_step-*"))


def test_told_to_stop_while_it_evaluates(tmp_path, monkeypatch, read_numbers):
    config = load_config("tests/toy_task.py")
    config.total_steps = 20
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for workdir in (whole, parts):
        workdir.mkdir()
    assert train(config, Workdir(whole), Preemption()) == 0

    stop = Preemption()
    make_batch = CircleClassifier.validation_batch

    def batch_with_a_signal(*arguments):
        stop._note(signal.SIGTERM, None)
        return make_batch(*arguments)

    monkeypatch.setattr(CircleClassifier, "validation_batch", batch_with_a_signal)
    assert train(config, Workdir(parts), stop) == EXIT_PREEMPTED
    assert not (parts / "report.html").exists()
    assert "validation/loss" not in read_numbers(parts)[-1]
    monkeypatch.undo()
    assert train(config, Workdir(parts), Preemption()) == 0
    assert read_numbers(parts) == read_numbers(whole)
    # The checkpoint of that step was scored after it was saved.
    with Checkpoints(parts, read_only=True) as checkpoints:
        assert checkpoints.best() == 20


def test_what_a_run_leaves_is_of_its_best_checkpoint(tmp_path, monkeypatch, capsys):
    config = load_config("tests/toy_task.py")
    config.total_steps, config.evaluate_every_steps = 20, 5
    scores, left = iter((3.0, 1.0, 2.0, 4.0)), []
    monkeypatch.setattr("bert_jax.train._validation_values", lambda *_: {"loss": next(scores)})
    monkeypatch.setattr(CircleClassifier, "finish", lambda *given: left.append(given[-1]) or ())
    assert train(config, Workdir(tmp_path), Preemption()) == 0
    assert "step 10 scored best" in capsys.readouterr().err
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 10
    [params] = left
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        best, last = (checkpoints.restore_params(step, params) for step in (10, 20))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, best))
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, params, last))


def test_worker_processes_make_the_same_batches(tmp_path, run_program, small_run, read_numbers):
    records = []
    for workers in (0, 2):
        workdir = tmp_path / str(workers)
        overrides = ("--config.total_steps=4", f"--config.loader_workers={workers}")
        finished = run_program("train", *small_run(workdir, *overrides))
        assert finished.returncode == 0, finished.stderr
        records.append(read_numbers(workdir))
    assert records[0] == records[1]


def test_other_objectives_optimizers_and_a_mixture(
    tmp_path, run_program, small_run, corpus_directory, text_directory, read_numbers
):
    second = tmp_path / "second"
    prepared = run_program(
        *("prepare", "--input", str(text_directory / "[a-d]*.txt"), "--output", str(second)),
        *("--vocabulary", str(corpus_directory), "--max_length", "64", "--workers", "0"),
    )
    assert prepared.returncode == 0, prepared.stderr
    overrides = (
        "--config.total_steps=4",
        f"--config.corpus={corpus_directory}:0.75+{second}:0.25",
        "--config.data.objective=sop",
        "--config.data.masking.unit=span",
        "--config.optimizer.name=lamb",
        "--config.optimizer.schedule=warmup_stable_decay",
        "--config.model.compute_dtype=bfloat16",
        "--config.mesh.fsdp=2",
    )
    finished = run_program("train", *small_run(tmp_path / "run", *overrides), devices=2)
    assert finished.returncode == 0, finished.stderr
    last = read_numbers(tmp_path / "run")[-1]
    assert last["data/rows/topics"] + last["data/rows/second"] == 4 * 16
    assert "validation/sop_accuracy" in last
    overrides = (
        "--config.total_steps=2",
        "--config.data.objective=none",
        "--config.data.masking.unit=word",
        "--config.optimizer.name=adafactor",
        "--config.optimizer.schedule=cosine",
    )
    finished = run_program("train", *small_run(tmp_path / "other", *overrides))
    assert finished.returncode == 0, finished.stderr


def test_one_document_with_next_sentences(tmp_path, run_program, small_run):
    text = "\n".join(f"This is sentence number {n} of the only document." for n in range(300))
    (tmp_path / "one.txt").write_text(text)
    prepared = run_program(
        *("prepare", "--input", str(tmp_path / "one.txt"), "--output", str(tmp_path / "corpus")),
        *("--vocab_size", "100", "--max_length", "64", "--workers", "0"),
    )
    assert prepared.returncode == 0, prepared.stderr
    run = small_run(
        tmp_path / "run", f"--config.corpus={tmp_path / 'corpus'}", "--config.total_steps=2"
    )
    refused = run_program("train", *run)
    assert refused.returncode == 2
    assert "has only one document" in refused.stderr
    # Without next sentences it can be learnt from; there is nothing to validate on.
    trained = run_program("train", *run, "--config.data.objective=none")
    assert trained.returncode == 0, trained.stderr
    assert run_program("evaluate", "--workdir", str(tmp_path / "run")).returncode == 2
