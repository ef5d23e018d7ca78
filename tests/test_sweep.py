"""Sweeps: every combination once, gone on with, compared; stopped as a run is stopped."""

import json
import math
import os
import shutil
import signal
import statistics
import sys

import pytest

from bert_jax import sweep
from bert_jax.errors import UserError
from bert_jax.training.preemption import EXIT_PREEMPTED
from bert_jax.training.result import RESULT, Result, find_result, read_result, write_result

TOY = ("--config", "tests/toy_task.py")
# Stands in for a run: notes that it ran, and comes to learning rate + seed / 1000.
FAKE = """
import json, os, pathlib, signal, sys
workdir, settings = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
(workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
with open(workdir.parents[1] / "ran", "a") as ran:
    print(workdir.parent.name, workdir.name, file=ran)
(workdir / "compiled").write_text(os.environ["JAX_COMPILATION_CACHE_DIR"])
rate = float(settings.get("optimizer.learning_rate", 0))
if settings.get("total_steps") == "13":
    sys.exit(2)
if settings.get("total_steps") == "15":
    (workdir / "checkpoints" / "5").mkdir()
    sys.exit(2)
if settings.get("total_steps") == "75":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
values = {"loss": 1.0, "accuracy": rate + int(settings["seed"]) / 1000}
result = {"step": 1, "selection": "accuracy", "higher_is_better": True, "values": values}
result["identity"] = {"data": os.environ.get("TEST_DATA", "")}
(workdir / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def fake_runs(monkeypatch, tmp_path):
    """Replaces the training program; gives what ran so far."""

    def command(specification, workdir, settings):
        return [sys.executable, "-c", FAKE, str(workdir), json.dumps(dict(settings))]

    monkeypatch.setattr(sweep, "_command", command)
    return lambda: (tmp_path / "ran").read_text().splitlines()


def arguments(workdir, *more):
    return [*TOY, "--workdir", str(workdir), *more]


RATES = ("--grid", "optimizer.learning_rate=0.1,0.3,0.2")


def test_every_combination_runs_once_and_is_compared(fake_runs, tmp_path, capsys):
    grid = [*RATES, "--grid", "batch_size=16,32", "--seeds", "1,2,4"]
    assert sweep.main(arguments(tmp_path, *grid)) == 0
    assert len(fake_runs()) == 18
    assert fake_runs()[:4] == [
        *(f"learning_rate=0.1,batch_size=16 seed={seed}" for seed in (1, 2, 4)),
        "learning_rate=0.1,batch_size=32 seed=1",
    ]
    header, *rows, last = capsys.readouterr().out.splitlines()
    expected = ["optimizer.learning_rate", "batch_size", "seeds", "accuracy", "loss"]
    assert header.split() == expected
    deviation = statistics.stdev([0.001, 0.002, 0.004])
    assert rows[2].split() == [
        *("0.3", "16", "3"),
        *(f"{0.3 + 0.007 / 3:.4f}", "±", f"{deviation:.4f}"),
        *("1.0000", "±", "0.0000"),
    ]
    assert last == f"best: {tmp_path}/learning_rate=0.3,batch_size=16"
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["best"] == "learning_rate=0.3,batch_size=16"
    assert record["points"][2]["metrics"]["accuracy"] == pytest.approx(
        {"mean": 0.3 + 0.007 / 3, "deviation": deviation}
    )

    # The same again repeats nothing; another seed adds what is missing.
    assert sweep.main(arguments(tmp_path, *grid)) == 0
    assert len(fake_runs()) == 18
    assert sweep.main(arguments(tmp_path, *RATES[:1], "batch_size=16", "--seeds", "5")) == 0
    assert fake_runs()[18:] == ["batch_size=16 seed=5"]


def test_only_the_best_checkpoints_are_kept(fake_runs, tmp_path):
    assert sweep.main(arguments(tmp_path, *RATES, "--seeds", "0,1", "--keep", "best")) == 0
    kept = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("checkpoints"))
    assert kept == ["learning_rate=0.3/seed=0", "learning_rate=0.3/seed=1"]
    assert len(list(tmp_path.rglob(RESULT))) == 6


def test_a_best_run_without_its_checkpoint_is_told(fake_runs, tmp_path, capsys):
    command = arguments(tmp_path, *RATES, "--seeds", "0,1", "--keep", "best")
    assert sweep.main(command) == 0
    assert "has no checkpoint" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "learning_rate=0.3" / "seed=0" / "checkpoints")
    assert sweep.main(command) == 0
    assert "seed=0 has no checkpoint any more, because" in capsys.readouterr().out


def test_a_damaged_record_is_told(fake_runs, tmp_path):
    (tmp_path / "sweep.json").write_text('{"runs"')
    with pytest.raises(UserError, match=r"sweep\.json is damaged; restore it"):
        sweep.main(arguments(tmp_path, "--seeds", "0,1"))


def test_without_a_grid_seeds_are_compared(fake_runs, tmp_path, capsys):
    assert sweep.main(arguments(tmp_path, "--seeds", "0,1")) == 0
    assert fake_runs() == ["default seed=0", "default seed=1"]
    assert "0.0005 ± 0.0007" in capsys.readouterr().out


def test_a_run_that_fails_stops_the_sweep(fake_runs, tmp_path):
    assert sweep.main(arguments(tmp_path, "--grid", "total_steps=12,13,14")) == 2
    assert fake_runs() == ["total_steps=12 seed=0", "total_steps=13 seed=0"]
    # What it was refused for can be corrected, since nothing was learnt; what ended well stays.
    again = arguments(tmp_path, "--grid", "total_steps=13", "--config.batch_size=8")
    assert sweep.main(again) == 2
    with pytest.raises(UserError, match="total_steps=12.*begun with other settings"):
        sweep.main(arguments(tmp_path, "--grid", "total_steps=12", "--config.batch_size=8"))
    assert sweep.main(arguments(tmp_path, "--grid", "total_steps=15")) == 2
    with pytest.raises(UserError, match="total_steps=15.*begun with other settings"):
        sweep.main(arguments(tmp_path, "--grid", "total_steps=15", "--config.batch_size=8"))


def test_runs_share_what_is_compiled(fake_runs, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert sweep.main(arguments(tmp_path / "a", "--seeds", "0,1")) == 0
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the user's")
    assert sweep.main(arguments(tmp_path / "b")) == 0
    told = [path.read_text() for path in sorted(tmp_path.rglob("compiled"))]
    assert told == [str(tmp_path / "a" / ".compiled")] * 2 + ["the user's"]


def test_runs_of_other_data_are_not_compared(fake_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_DATA", "a")
    assert sweep.main(arguments(tmp_path)) == 0
    monkeypatch.setenv("TEST_DATA", "b")
    with pytest.raises(UserError, match="the data have changed since .*seed=0 was trained"):
        sweep.main(arguments(tmp_path, "--seeds", "0,1"))
    # A setting may be one of those that make the rows.
    assert sweep.main(arguments(tmp_path, "--grid", "total_steps=12")) == 0


def test_sigterm_is_passed_on_to_the_run(fake_runs, tmp_path):
    assert sweep.main(arguments(tmp_path, "--grid", "total_steps=75,76")) == EXIT_PREEMPTED
    assert fake_runs() == ["total_steps=75 seed=0"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_settings_are_refused(fake_runs, tmp_path):
    assert sweep.main(arguments(tmp_path)) == 0
    with pytest.raises(UserError, match="begun with other settings.*batch_size"):
        sweep.main(arguments(tmp_path, "--config.batch_size=8"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--grid", "batch_sise=1,2"], "did you mean --config.batch_size?"),
        (["--grid", "batch_size=1,x"], "--config.batch_size takes a whole number"),
        (["--grid", "batch_size"], "KEY=VALUE,VALUE"),
        (["--grid", "batch_size=1,1"], "different values"),
        (["--grid", "seed=1,2"], "give --seeds"),
        (["--config.seed=5"], "in the place of --config.seed"),
        (["--grid", "batch_size=1", "--grid", "batch_size=2"], "a key twice"),
        (["--seeds", "1,1"], "different whole numbers"),
        (["--seeds", "a"], "different whole numbers"),
    ],
)
def test_what_cannot_be_swept(tmp_path, more, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        sweep.main(arguments(tmp_path / "new", *more))
    assert not os.listdir(tmp_path)


def test_a_score_that_the_rows_do_not_define_is_read_back(tmp_path):
    result = Result(3, "loss", False, {"loss": 0.5, "spearman": math.nan}, {"data": "a"})
    write_result(tmp_path / "result.json", result)
    assert json.loads((tmp_path / "result.json").read_text())["values"]["spearman"] is None
    found = read_result(tmp_path / "result.json")
    assert math.isnan(found.values.pop("spearman"))
    assert found == result._replace(values={"loss": 0.5})


def test_the_result_is_that_of_the_checkpoint_that_is_kept():
    log = [
        {"step": 1, "validation/loss": 0.1, "train/loss": 9.0},  # of an earlier phase
        {"step": 2, "validation/loss": 0.5, "validation/x": 2.0},
        {"step": 3, "train/loss": 9.0},
        {"step": 4, "validation/loss": 0.4, "validation/x": 4.0},
        {"step": 6, "validation/loss": 0.4, "validation/x": 6.0},
        {"step": 7, "validation/loss": float("nan"), "validation/x": 7.0},
        {"step": 8, "validation/loss": 0.6, "validation/x": 8.0},
    ]
    best = find_result(log, "loss", False, first_step=2, best=True)
    assert (best.step, best.values) == (4, {"loss": 0.4, "x": 4.0})
    assert find_result(log, "x", True, first_step=2, best=True).step == 8
    assert find_result(log, "loss", False, first_step=2, best=False).step == 8
    assert find_result(log[:1], "loss", False, first_step=2, best=True).values == {}


@pytest.mark.slow
def test_real_runs_are_stopped_and_gone_on_with(tmp_path, run_program, start_program):
    few = ("--grid", "optimizer.learning_rate=0.03,0.0001", "--keep", "best")
    command = ("sweep", *arguments(tmp_path, *few))
    for number, step, code in ((signal.SIGTERM, 12, EXIT_PREEMPTED), (signal.SIGKILL, 25, -9)):
        process = start_program(*command)
        with process:
            for line in process.stdout:
                if line.startswith(f"step {step}/"):
                    process.send_signal(number)
        assert process.returncode == code
    done = run_program(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"best: {tmp_path}/learning_rate=0.03"
    best, other = tmp_path / "learning_rate=0.03/seed=0", tmp_path / "learning_rate=0.0001/seed=0"
    assert (best / "checkpoints").exists() and not (other / "checkpoints").exists()
    steps = [json.loads(line)["step"] for line in (best / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))
    scored = run_program("evaluate", "--workdir", str(best), "--step", "best", "--json")
    result = json.loads((best / RESULT).read_text())
    assert json.loads(scored.stdout) == pytest.approx(
        {"step": result["step"], **result["values"]}, rel=1e-6
    )
