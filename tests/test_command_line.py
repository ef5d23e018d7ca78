import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict, config_dict

from bert_jax.command_line import ArgumentParser, parse_config_flags, run
from bert_jax.config_file import load_config, override_config, override_from_argument
from bert_jax.errors import Stopped, UserError

_CONFIG = """
from ml_collections import ConfigDict

def get_config(size="tiny"):
    if size == "huge":
        raise KeyError(size)
    return ConfigDict({
        "size": size,
        "total_steps": 1000,
        "init_from": None,
        "shuffle": True,
        "betas": (0.9, 0.999),
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
        "mesh": {"data": 1, "fsdp": 1},
    })
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(_CONFIG)
    return str(path)


@pytest.fixture
def config(config_file):
    return load_config(config_file)


def _parse(config_file, *arguments):
    return parse_config_flags(["--config", config_file, "--workdir", "runs/a", *arguments])


# --- parse_config_flags ---


def test_the_recipe_is_loaded_and_locked(config_file):
    parsed = parse_config_flags([f"--config={config_file}:small", "--workdir=runs/a"])
    assert parsed.workdir == "runs/a"
    assert parsed.config.size == "small"
    assert parsed.config.optimizer.to_dict() == {"name": "adamw", "learning_rate": 1e-4}
    with pytest.raises(AttributeError):
        parsed.config.mesh.dta = 2


def test_overrides_may_stand_anywhere_and_the_last_one_counts(config_file):
    parsed = parse_config_flags(
        [
            "--config.total_steps=5",
            "--config",
            config_file,
            "--config.mesh.data",
            "8",
            "--workdir=w",
            "--config.total_steps=7",
            "--config.optimizer.name=a=b",
            "--config.optimizer.learning_rate",
            "-1",
        ]
    )
    assert parsed.config.total_steps == 7
    assert parsed.config.mesh.data == 8
    assert parsed.config.optimizer.to_dict() == {"name": "a=b", "learning_rate": -1.0}


def test_parsing_again_starts_afresh_and_leaves_absl_s_flags_alone(config_file):
    before = set(flags.FLAGS)
    assert _parse(config_file, "--config.total_steps=5").config.total_steps == 5
    assert _parse(config_file).config.total_steps == 1000
    assert set(flags.FLAGS) == before


def test_the_process_s_own_arguments_are_the_default(config_file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", config_file, "--workdir", "w"])
    assert parse_config_flags().workdir == "w"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.total_step=5"], "--config.total_step; did you mean --config.total_steps?"),
        (["--config.fsdp=5"], "--config.fsdp; did you mean --config.mesh.fsdp?"),
        (["--config.mesh.learning_rate=5"], "did you mean --config.optimizer.learning_rate?"),
        (["--config.rate.learning=5"], "unknown config key --config.rate.learning; "),
        (["--config.total_steps.more=5"], "unknown config key --config.total_steps.more; "),
        (["--config.=5"], "unknown config key --config.; the keys are betas, "),
        (["--config.mesh=8"], "set one of them: --config.mesh.data, --config.mesh.fsdp"),
        (["--config.shuffle"], "has no value; write --config.shuffle=VALUE"),
        (["--config.shuffle", "--help"], "has no value; write --config.shuffle=VALUE"),
        (["--workdri=b"], "unknown flag --workdri; did you mean --workdir?"),
        (["--work=b"], "unknown flag --work; did you mean --workdir?"),
        (["--qqq"], "unknown flag --qqq; see python -m bert_jax.train --help"),
        (["total_steps=5"], "unexpected argument 'total_steps=5'; see python"),
    ],
)
def test_mistakes_are_told_in_one_sentence(config_file, arguments, message):
    with pytest.raises(UserError) as raised:
        _parse(config_file, *arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_required_is_named(config_file):
    with pytest.raises(UserError, match="required: --workdir"):
        parse_config_flags(["--config", config_file])
    # The misspelling, and not that the flag which was meant is missing.
    with pytest.raises(UserError, match="unknown flag --workdri"):
        parse_config_flags(["--config", config_file, "--workdri", "a"])


def test_help_ends_well(capsys):
    with pytest.raises(SystemExit) as raised:
        parse_config_flags(["--help"])
    assert raised.value.code == 0
    assert "--config.KEY=VALUE" in capsys.readouterr().out


# --- load_config ---


@pytest.mark.parametrize(
    ("source", "argument", "message"),
    [
        ("x = 1\ny = 1 / 0\n", "", "recipe.py, line 2: ZeroDivisionError: division by zero"),
        ("x = 1\ndef f(:\n", "", "recipe.py, line 2: SyntaxError: "),
        (_CONFIG, ":huge", "recipe.py, line 6: KeyError: 'huge'"),
        ("import no_such_module\n", "", "line 1: ModuleNotFoundError: No module named"),
        ("x = 1\n", "", "has no function get_config"),
        (
            "def get_config(): return {}\n",
            "",
            "returned dict; it must return an ml_collections.ConfigDict",
        ),
        ("def get_config(): pass\n", ":a", "takes no argument; write --config /"),
        ("def get_config(size): pass\n", "", "recipe.py:ARGUMENT"),
    ],
)
def test_a_config_file_that_fails_is_named_with_the_line(tmp_path, source, argument, message):
    path = tmp_path / "recipe.py"
    path.write_text(source)
    with pytest.raises(UserError) as raised:
        load_config(f"{path}{argument}")
    assert message in str(raised.value)
    assert "recipe.py" in str(raised.value)


def test_an_error_deep_in_a_library_is_placed_in_the_config_file(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text("import json\n\ndef get_config():\n    return json.loads('{')\n")
    with pytest.raises(UserError, match="recipe.py, line 4: JSONDecodeError: "):
        load_config(str(path))


def test_a_sentence_from_the_config_file_is_passed_on(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from bert_jax.errors import UserError\n"
        "def get_config():\n    raise UserError('size must be tiny')\n"
    )
    with pytest.raises(UserError, match="^size must be tiny$"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("name", "message"), [("absent.py", "does not exist"), ("recipe.txt", "must end in .py")]
)
def test_what_is_not_a_config_file_is_refused(tmp_path, name, message):
    (tmp_path / "recipe.txt").touch()
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / name))


# --- override_config ---


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("total_steps", "100_000", 100_000),
        ("total_steps", "1e5", 100_000),
        ("total_steps", "1.5e1", 15),
        ("total_steps", "-3", -3),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "2", 2.0),
        ("optimizer.name", "1e5", "1e5"),
        ("optimizer.name", "", ""),
        ("shuffle", "false", False),
        ("shuffle", "True", True),
        ("shuffle", "0", False),
        ("betas", "(0.8, 0.9)", (0.8, 0.9)),
        ("betas", "0.8,0.9", (0.8, 0.9)),
        ("betas", "[1, 2]", (1, 2)),
        ("init_from", "runs/base", "runs/base"),
        ("init_from", "None", None),
        ("init_from", "3", 3),
        ("init_from", "1e5", 100_000),
        ("init_from", "0.5", 0.5),
        ("init_from", "2.0", 2.0),
        ("init_from", "('query',)", ("query",)),
        ("init_from", "{1, 2}", "{1, 2}"),
        ("init_from", "{[1]: 2}", "{[1]: 2}"),
        ("init_from", "1j", "1j"),
    ],
)
def test_text_is_read_as_the_key_s_type(config, key, text, value):
    override_config(config, key, text)
    group = config
    for name in key.split("."):
        group = group[name]
    assert group == value and type(group) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("total_steps", "1.5", "a whole number such as 1000, 1_000 or 1e3, not '1.5'"),
        ("total_steps", "many", "a whole number"),
        ("total_steps", "", "a whole number"),
        ("total_steps", "inf", "a whole number"),
        ("total_steps", "nan", "a whole number"),
        ("total_steps", "1e999999999", "a whole number"),
        ("optimizer.learning_rate", "fast", "a number such as 0.1 or 1e-4, not 'fast'"),
        ("shuffle", "maybe", "true or false, not 'maybe'"),
        ("betas", "0.9", r"a tuple such as \(0.9, 0.999\), not '0.9'"),
        ("betas", "(0.9", r"a tuple such as \(0.9, 0.999\)"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_the_right_one_named(config, key, text, expected):
    before = config.to_json()
    with pytest.raises(UserError, match=f"^--config.{key} takes {expected}"):
        override_config(config, key, text)
    assert config.to_json() == before


def test_a_tuple_in_the_config_s_argument_has_commas_of_its_own(config):
    override_from_argument(config, "betas=(0.8,0.99),size=small,optimizer.name=lamb")
    assert (config.betas, config.size, config.optimizer.name) == ((0.8, 0.99), "small", "lamb")
    with pytest.raises(UserError, match="'small' in the config's argument is no KEY=VALUE"):
        override_from_argument(config, "small")


def test_a_placeholder_has_its_own_type():
    config = ConfigDict({"seed": config_dict.placeholder(int)})
    with pytest.raises(UserError, match="takes a whole number"):
        override_config(config, "seed", "x")
    override_config(config, "seed", "1e2")
    assert config.seed == 100


def test_a_value_that_no_text_can_give_is_refused():
    config = ConfigDict({"sizes": {1, 2}})
    with pytest.raises(UserError, match="takes no value from the command line, being a set"):
        override_config(config, "sizes", "{1}")


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--coordinator=a:1"], "go together"),
        (["--coordinator=a", "--processes=2", "--process=0"], "--coordinator=a is no HOST:PORT"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "--process=2 is none of"),
        (["--heartbeat_timeout=0"], "at least 1 second"),
    ],
)
def test_a_group_of_processes_is_described_whole(config_file, flags, told):
    with pytest.raises(UserError, match=told):
        _parse(config_file, *flags)


# --- ArgumentParser ---


def test_subcommands_name_the_nearest_of_their_own_flags():
    parser = ArgumentParser(prog="predict")
    subcommands = parser.add_subparsers(required=True)
    subcommands.add_parser("fill-mask").add_argument("--checkpoint")
    assert parser.parse_args(["fill-mask", "--checkpoint", "a"]).checkpoint == "a"
    with pytest.raises(UserError, match="unknown flag --checkpont; did you mean --checkpoint?"):
        parser.parse_args(["fill-mask", "--checkpont=a"])
    with pytest.raises(UserError, match="invalid choice: 'fill'"):
        parser.parse_args(["fill"])


def test_what_follows_two_dashes_is_no_flag():
    parser = ArgumentParser(prog="predict")
    parser.add_argument("text")
    assert parser.parse_args(["--", "--text"]).text == "--text"


# --- run ---


def _exit(main, capsys) -> tuple[int | None, str]:
    with pytest.raises(SystemExit) as raised:
        run(main)
    captured = capsys.readouterr()
    assert captured.out == ""
    return raised.value.code, captured.err


def _raise(error: BaseException):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize("code", [None, 0, 75])
def test_the_program_s_own_code_is_kept(code, capsys):
    assert _exit(lambda: code, capsys) == (code, "")


def test_a_user_error_is_one_line(capsys):
    main = _raise(UserError("vocabulary\n  has no [MASK]"))
    assert _exit(main, capsys) == (2, "error: vocabulary has no [MASK]\n")


def test_an_interrupt_is_one_line(capsys):
    assert _exit(_raise(KeyboardInterrupt()), capsys) == (130, "interrupted\n")


def test_output_that_nobody_reads_ends_the_program_in_silence():
    program = "from bert_jax.command_line import run; run(lambda: print('x' * 1_000_000))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_the_logs_of_libraries_are_silent():
    program = """
import logging

import absl.logging

from bert_jax.command_line import run

def main():
    absl.logging.error("of Orbax")
    logging.getLogger("asyncio").error("of an event loop")
    logging.getLogger("jax").warning("heard")

run(main)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    [line] = ended.stderr.decode().splitlines()
    assert line.endswith("heard")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/a"),
            "runs/a cannot be used: Permission denied",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", Path("a")),
            "a cannot be used: Read-only file system",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "aaa"),
            "aaa cannot be used: File name too long",
        ),
    ],
)
def test_a_disk_that_cannot_be_used_is_one_line(error, message, capsys):
    assert _exit(_raise(error), capsys) == (2, f"error: {message}\n")


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_is_not_lost_where_python_discards_exceptions(number, code):
    program = f"""
import os, signal, threading
from bert_jax.command_line import run, terminated_as_exception

class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})

def main():
    with terminated_as_exception():
        Callback()
        threading.Event().wait()

signal.signal(signal.SIGINT, signal.default_int_handler)  # however this test was started
run(main)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert ended.returncode == code
    assert ended.stderr == (b"interrupted\n" if number == "SIGINT" else b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_what_a_signal_stopped_can_be_gone_on_with(number, code, capsys):
    assert _exit(_raise(Stopped(number)), capsys) == (code, "stopped\n")


@pytest.mark.parametrize(
    "error", [ValueError("bug"), FileNotFoundError(errno.ENOENT, "?"), OSError(errno.EACCES, "?")]
)
def test_a_fault_of_the_program_keeps_its_traceback(error, capsys):
    code, told = _exit(_raise(error), capsys)
    assert code == 1
    assert told.startswith("Traceback")
    assert f"{type(error).__name__}: {error}" in told


def test_what_failed_leaves_as_it_is_told_to(capsys):
    class Left(Exception):
        pass

    def leave(code: int):
        raise Left(code)

    with pytest.raises(Left, match="2"):
        run(_raise(UserError("no")), fail=leave)
    with pytest.raises(SystemExit):
        run(lambda: 75, fail=leave)
