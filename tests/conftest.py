"""What tests share: a small corpus of real text, and runs of the training program."""

import json
import os

# Before JAX is imported: tests run on the CPU, wherever they run, and most of their time is
# compilation, half of it LLVM's optimisation of programs that run for milliseconds, and emitters of
# fused loops that are slow to compile; a jaxlib without the older emitters takes no notice.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true"
)

import contextlib
import pydoc_data.topics
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from warm_programs import WarmProgram, start_server

from bert_jax.data.preparation import PrepareOptions, prepare_corpus

# A busy machine fails no test, and neither does a first example that compiles.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

# A script that starts the tests in the background has SIGINT ignored, which programs inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

UNOPTIMISED = os.environ["XLA_FLAGS"]
ROOT = Path(__file__).parents[1]
# A model that compiles in seconds; two heads, so that a mesh can split them.
SMALL = (
    "--config.batch_size=16",
    "--config.data.max_length=32",
    "--config.log_every_steps=1",
    "--config.evaluation.examples=72",  # not a whole number of batches
    "--config.optimizer.learning_rate=1e-3",
)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of real data sets that ``BERT_JAX_DATA`` names; tests are skipped without."""
    if "BERT_JAX_DATA" not in os.environ:
        pytest.skip("BERT_JAX_DATA names no directory of real data")
    return Path(os.environ["BERT_JAX_DATA"])


@pytest.fixture(scope="session")
def text_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text in files: the topics of Python's own help, one a file."""
    directory = tmp_path_factory.mktemp("text")
    for name, text in sorted(pydoc_data.topics.topics.items())[:40]:
        (directory / f"{name.lower()}.txt").write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def corpus_directory(text_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of that text for length 64: 1000 tokens, six validation documents."""
    directory = tmp_path_factory.mktemp("corpora") / "topics"
    options = PrepareOptions(
        vocabulary_size=1000, max_length=64, validation_share=0.15, lowercase=True, workers=0
    )
    prepare_corpus([str(text_directory / "*.txt")], directory, options)
    return directory


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's runs keep what they compiled: most of a short run is compilation."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent  # which all workers share
    return directory / "compiled_programs"


def program_environment(compiled: Path) -> dict[str, str]:
    """The environment of the package's programs but for their devices."""
    return dict(os.environ) | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PYTHONWARNINGS": "ignore",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def devices_flags(devices: int) -> dict[str, str]:
    """The variable that gives a program virtual CPU devices."""
    return {"XLA_FLAGS": f"{UNOPTIMISED} --xla_force_host_platform_device_count={devices}"}


@pytest.fixture(scope="session")
def warm_program(compiled_programs: Path) -> Callable[..., WarmProgram]:
    """Starts ``bert_jax.MODULE`` without importing anything again."""
    with contextlib.chdir(ROOT):
        start_server(program_environment(compiled_programs))

    def start(
        module: str,
        *arguments: str,
        devices: int = 1,
        environment: Mapping[str, str] | None = None,
        separate_errors: bool = False,
    ) -> WarmProgram:
        given = devices_flags(devices) | dict(environment or {})
        return WarmProgram(f"bert_jax.{module}", arguments, given, separate_errors)

    return start


@pytest.fixture(scope="session")
def run_program(warm_program: Callable[..., WarmProgram]) -> Callable[..., Any]:
    """Runs ``bert_jax.MODULE`` to its end: (module, *arguments, devices=1)."""

    def run_to_end(module: str, *arguments: str, devices: int = 1):
        process = warm_program(module, *arguments, devices=devices, separate_errors=True)
        stdout, stderr = process.communicate()
        command = [module, *arguments]
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    return run_to_end


@pytest.fixture(scope="session")
def start_program(
    warm_program: Callable[..., WarmProgram], compiled_programs: Path
) -> Callable[..., WarmProgram | subprocess.Popen[str]]:
    """Starts ``bert_jax.MODULE`` with its output as one stream of lines.

    A variable that ``environment`` gives as None is not set; that takes a Python of its own.
    """

    def start(
        module: str,
        *arguments: str,
        devices: int = 1,
        environment: Mapping[str, str | None] | None = None,
    ):
        given = dict(environment or {})
        if None not in given.values():
            return warm_program(module, *arguments, devices=devices, environment=given)
        given = program_environment(compiled_programs) | devices_flags(devices) | given
        return subprocess.Popen(
            [sys.executable, "-m", f"bert_jax.{module}", *arguments],
            env={name: value for name, value in given.items() if value is not None},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def start_processes(
    start_program: Callable[..., Any],
) -> Iterator[Callable[..., list[Any]]]:
    """Starts a training run in several processes: (processes, devices of each, *arguments).

    ``own`` are more arguments of each process.
    """
    started: list[Any] = []

    def start(
        processes: int,
        devices: int,
        *arguments: str,
        own: Sequence[Sequence[str]] = (),
        **keywords: object,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        group = ("--coordinator", coordinator, "--processes", str(processes))
        for number in range(processes):
            place = (*group, "--process", str(number), "--heartbeat_timeout=10")
            apart = own[number] if own else ()
            command = ("train", *arguments, *apart, *(place if processes > 1 else ()))
            started.append(start_program(*command, devices=devices, **keywords))
        return started[-processes:]

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="session")
def small_run(corpus_directory: Path) -> Callable[..., Sequence[str]]:
    """Arguments of a small pretraining run: (workdir, *overrides, size="L1_H128")."""

    def arguments(workdir: Path, *overrides: str, size: str = "L1_H128") -> Sequence[str]:
        config = f"configs/pretrain.py:{size},corpus={corpus_directory}"
        return ("--config", config, "--workdir", str(workdir), *SMALL, *overrides)

    return arguments


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[Path], list[dict[str, float]]]:
    """The lines of a run's metrics without what a clock decides."""

    def read(workdir: Path) -> list[dict[str, float]]:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if not key.startswith("speed/")}
            for line in lines
        ]

    return read
