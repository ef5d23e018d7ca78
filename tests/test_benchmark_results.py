"""A file of results for each machine, and the README's table that is made of them."""

import argparse
import json
import sys

import pytest
from conftest import ROOT

from benchmarks import results
from benchmarks.results import DIRECTORY, add_results_argument, keep, table
from bert_jax.errors import UserError


@pytest.fixture
def run(monkeypatch, tmp_path):
    """As a benchmark that was started with some arguments: (figure, *arguments)."""

    def run(figure, *arguments):
        path = tmp_path / "machine.json"
        program = str(ROOT / "benchmarks" / "speed.py")
        monkeypatch.setattr(sys, "argv", [program, *arguments, "--results", str(path)])
        keep(path, "a step", figure, {"seconds": [1.0]}, {"torch": "2"})
        return path

    return run


def test_the_same_command_replaces_what_it_found_before(run, tmp_path):
    run("2 s", "--size", "mini")
    run("5 s", "--size", "base")
    path = run("1 s", "--size", "mini")
    found = json.loads(path.read_text())["results"]
    commands = [
        "python benchmarks/speed.py --size base",
        "python benchmarks/speed.py --size mini",
    ]
    assert [result["command"] for result in found] == commands
    assert [result["figure"] for result in found] == ["5 s", "1 s"]
    assert found[0]["environment"]["torch"] == "2"
    lines = table([path])
    assert len(lines) == 4
    assert lines[3].startswith("| a step | 1 s | ") and lines[3].endswith(f"`{commands[1]}` |")


def test_what_one_command_measured_is_kept_as_if_it_had_been_asked_for_alone(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"
    monkeypatch.setattr(sys, "argv", ["speed.py", "a:1,key=2", "b:2", "--results", str(path)])
    keep(path, "a step of a", "1 s", {}, {}, {"b:2"})
    keep(path, "a step of b", "2 s", {}, {}, {"a:1,key=2"})
    found = json.loads(path.read_text())["results"]
    assert [(result["what"], result["command"]) for result in found] == [
        ("a step of a", "python benchmarks/speed.py a:1,key=2"),
        ("a step of b", "python benchmarks/speed.py b:2"),
    ]


@pytest.mark.parametrize("form", [("--data", "{}"), ("--data={}",)])
def test_where_files_lie_is_not_told(run, tmp_path, form):
    path = run("1 s", *(part.format(tmp_path / "sst2.jsonl") for part in form))
    assert str(tmp_path) not in path.read_text()
    assert "speed.py --data sst2.jsonl`" in table([path])[2]


def test_results_of_another_machine_are_refused_before_anything_is_measured(run, capsys):
    path = run("1 s")
    parser = argparse.ArgumentParser()
    add_results_argument(parser)
    assert parser.parse_args(["--results", str(path)]).results == path
    content = json.loads(path.read_text())
    content["machine"]["processor"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        parser.parse_args(["--results", str(path)])
    assert "is of another machine" in capsys.readouterr().err


def test_results_of_another_accelerator_are_refused(run, monkeypatch):
    path = run("1 s")
    content = json.loads(path.read_text())
    content["results"][0]["environment"]["device"] = "NVIDIA H100"
    path.write_text(json.dumps(content))
    run("2 s", "--on", "cpu")  # the same host may measure its own processor
    ours = results.environment() | {"device": "NVIDIA H200"}
    monkeypatch.setattr(results, "environment", lambda: ours)
    with pytest.raises(UserError, match="is of NVIDIA H100, and this of NVIDIA H200; name another"):
        run("1 s")


def test_without_a_file_nothing_is_kept():
    keep(None, "a step", "1 s", {}, {})


def test_the_readme_has_what_was_measured():
    lines = table(list(DIRECTORY.glob("*.json")))
    assert len(lines) > 2
    readme = (ROOT / "README.md").read_text().splitlines()
    missing = [line for line in lines if line not in readme]
    assert not missing, "run python benchmarks/results.py, and put its table into the README"
