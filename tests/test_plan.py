"""Plans: mistakes, the same step as training compiles, and the compiler for TPUs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.errors import UserError
from bert_jax.models.config import SIZES
from bert_jax.plan import main
from bert_jax.training.footprint import ROUND_NUMBERS
from bert_jax.training.topology import GIB

ROOT = Path(__file__).parents[1]
PRETRAIN = ("--config", "configs/pretrain.py:L1_H64")
VOCABULARY = ("--vocabulary_size", "1000")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--topology", "v9:2x2"], "--topology 'v9:2x2' is unknown; give a slice such as v5e:2x2"),
        (["--topology", "v5e-16"], "--topology 'v5e-16' is unknown"),
        (
            ["--topology", "v4:2x2"],
            "v4 slices have 3 dimensions and 1 to 4096 chips, such as v4:2x2x2",
        ),
        (["--topology", "v5e:0x2"], "v5e slices have 2 dimensions and 1 to 256 chips"),
        (["--topology", "v6e:32x16"], "v6e slices have 2 dimensions and 1 to 256 chips"),
        (["--config.mesh.fsdp=3"], "mesh.data=-1, mesh.fsdp=3, mesh.tensor=1 does not fit the 1 "),
        (["--config.accumulation_steps=3"], "a batch size that is a multiple of 3"),
        ([], "the memory of 'cpu' is not known; give it with --hbm_gib, or --no_search"),
        (["--mfu", "0"], "--mfu 0.0 must be above 0"),
        (["--mfu", "40"], "--mfu 40.0 must be above 0 and at most 1"),
        (["--hbm_gib", "inf"], "--hbm_gib inf must be above 0"),
        (["--batch_per_chip", "-1"], "--batch_per_chip -1 must be above 0"),
        (["--vocabulary_size", "3"], "a vocabulary of 3 tokens has no room for words"),
        (["--topologies", "v5e:2x2"], "did you mean --topology?"),
        (["--config.corpus=nowhere"], "There is no corpus at nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told(flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        main([*PRETRAIN, *flags])


def test_a_vocabulary_size_is_of_pretraining_only():
    with pytest.raises(UserError, match="--vocabulary_size is of pretraining from random weights"):
        main(["--config", "configs/glue.py:sst2", "--vocabulary_size", "1000"])


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]' brings it"):
        main([*PRETRAIN, "--topology", "v5e:2x2"])


@pytest.fixture
def plan(run_program):
    """Runs ``bert_jax.plan --json``: (*arguments, devices=1) -> the object."""

    def run(*arguments, **keywords):
        finished = run_program("plan", *arguments, "--json", **keywords)
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)

    return run


@pytest.mark.slow
def test_the_step_is_the_one_that_training_compiles(run_program, plan, small_run, tmp_path):
    arguments = small_run(tmp_path, "--config.mesh.fsdp=4", "--config.total_steps=1")
    trained = run_program("train", *arguments, devices=8)
    assert trained.returncode == 0, trained.stderr
    place = arguments.index("--workdir")
    planned = plan(*arguments[:place], *arguments[place + 2 :], "--no_search", devices=8)
    assert planned["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    (phase,) = planned["phases"]
    memory = phase["memory_bytes_per_chip"]
    told = re.search(r"([\d.]+) MiB of arguments and ([\d.]+) MiB of temporaries", trained.stderr)
    assert f"{memory['arguments'] / 2**20:.3g}" == told[1]
    assert f"{memory['temporaries'] / 2**20:.3g}" == told[2]
    assert f"{phase['flops_per_chip'] / 1e9:.1f} GFLOP a device" in trained.stderr


def planned_here(capsys, *arguments):
    assert main([*PRETRAIN, *VOCABULARY, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_largest_batch_is_searched_without_a_corpus(capsys):
    flags = ("--config.data.max_length=32", "--hbm_gib", "0.08", "--batch_per_chip")
    searched = planned_here(capsys, *flags, "256")
    assert searched["vocabulary_of_stand_in"] == 1000
    largest = searched["phases"][0]["largest_batch_size"]
    larger = ROUND_NUMBERS[ROUND_NUMBERS.index(largest) + 1]
    assert searched["phases"][0]["fits"] and largest > 256
    (phase,) = planned_here(capsys, *flags, str(larger), "--no_search")["phases"]
    assert not phase["fits"] and phase["memory_bytes_per_chip"]["left"] < 0


@pytest.mark.slow
def test_a_phase_each_and_the_time_at_an_mfu(capsys):
    flags = ("--no_search", "--peak_tflops", "2", "--mfu", "0.5", "--config.batch_size=8")
    settings = ("second_phase.share=0.1", "second_phase.max_length=64", "data.max_length=32")
    planned = planned_here(capsys, *flags, *(f"--config.{setting}" for setting in settings))
    first, second = planned["phases"]
    assert (first["description"], second["description"]) == ("length 32", "length 64")
    assert first["compute_seconds"] == pytest.approx(first["flops_per_chip"] / 1e12)
    assert second["flops_per_chip"] > first["flops_per_chip"]


# What the compiler for TPUs makes of real sizes; its least effort tells the same here. They share a
# process, because a start costs as much as half a compilation.
SLICES = {
    ("base", "v6e:16x16"): {"data": 256, "fsdp": 1},
    ("large", "v5e:16x16"): {"data": 16, "fsdp": 16},
}
TOPOLOGIES = ("v4:4x8x8", "v5e:16x16", "v5p:4x8x8", "v6e:16x16")
MORE_SLICES = [
    {("base", "v4:2x2x1"): {"data": 1, "fsdp": 4}},
    {("base", "v5p:2x2x2"): {"data": 2, "fsdp": 4}},
    *(
        {(size, topology): mesh}
        for size in ("base", "large")
        for topology in TOPOLOGIES
        for mesh in ({"data": 256, "fsdp": 1}, {"data": 16, "fsdp": 16})
    ),
]
HBM_GIB = {"v4": 30.75, "v5e": 15.75, "v5p": 95.73, "v6e": 31.25}
PLANS = "import sys; from bert_jax.plan import main; [main(line.split()) for line in sys.stdin]"


def name_of(slices):
    """What a test of them is called."""
    if len(slices) > 1:
        return "several"
    ((size, topology), mesh), *_ = slices.items()
    return f"{size}-{topology}-fsdp{mesh['fsdp']}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "slices",
    [SLICES, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in MORE_SLICES)],
    ids=name_of,
)
def test_real_sizes_on_slices_of_tpus(slices):
    lines = [
        f"--config configs/pretrain.py:{size} --topology {topology} --vocabulary_size 30522 --json "
        f"--no_search --quick --batch_per_chip 8 --config.mesh.data={mesh['data']} "
        f"--config.mesh.fsdp={mesh['fsdp']}\n"
        for (size, topology), mesh in slices.items()
    ]
    for planned, ((size, topology), mesh) in zip(plans_of(lines), slices.items(), strict=True):
        assert planned["mesh"] == mesh | {"tensor": 1}
        assert planned["peak_flops_per_chip"] is not None
        check_memory(planned, HBM_GIB[topology.partition(":")[0]] * GIB, mesh["fsdp"])
        check = check_data_parallel if mesh["fsdp"] == 1 else check_fsdp
        check(planned, planned["phases"][0], *SIZES[size])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "topology, data, fsdp, flags",
    [
        # As thin as a chip's part of a parameter may be.
        *((topology, 2, 128, "--batch_per_chip 8") for topology in TOPOLOGIES),
        # The most embedded tokens: as many as fit.
        ("v5e:16x16", 16, 16, "--batch_per_chip 224 --config.model.compute_dtype=bfloat16"),
    ],
)
def test_no_collective_is_larger_than_a_layer(topology, data, fsdp, flags):
    line = (
        f"--config configs/pretrain.py:large --topology {topology} --vocabulary_size 30522 --json "
        f"--no_search --quick {flags} --config.mesh.data={data} --config.mesh.fsdp={fsdp}\n"
    )
    (planned,) = plans_of([line])
    check_fsdp(planned, planned["phases"][0], *SIZES["large"])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("generation", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_longest_sequences_compile_for_every_tpu(generation):
    line = (
        f"--config configs/pretrain.py:base --topology {generation} --vocabulary_size 30522 --json "
        "--no_search --quick --batch_per_chip 32 --config.data.max_length=512 "
        "--config.model.compute_dtype=bfloat16\n"
    )
    (planned,) = plans_of([line])
    (phase,) = planned["phases"]
    assert phase["fits"] and phase["collectives"].keys() == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_rematerialisation_on_a_tpu():
    """`offload` keeps what `dots` keeps in the host's memory."""
    flags = "--topology v5e:1x1 --json --no_search --quick --batch_per_chip 64"
    model = f"--config configs/pretrain.py:L8_H256 {' '.join(VOCABULARY)} --config.model.remat"
    lines = [f"{model}={remat} {flags}\n" for remat in ("full", "offload", "dots")]
    full, offload, dots = (
        planned["phases"][0]["memory_bytes_per_chip"]["temporaries"] for planned in plans_of(lines)
    )
    assert full < offload < 0.7 * dots


def plans_of(lines):
    """What `bert_jax.plan` prints for each line of arguments, all in one process."""
    finished = subprocess.run(
        [sys.executable, "-c", PLANS],
        input="".join(lines),
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    text, plans = finished.stdout, []
    while text:
        planned, end = json.JSONDecoder().raw_decode(text)
        text = text[end:].lstrip()
        plans.append(planned)
    return plans


def check_memory(planned, hbm, fsdp):
    """The state of AdamW is three float32 numbers a parameter, and falls as 1/n."""
    share = 12 * planned["parameters"] / fsdp
    assert planned["state_bytes_per_chip"] == pytest.approx(share, rel=0.02)
    (phase,) = planned["phases"]
    memory = phase["memory_bytes_per_chip"]
    # The compiler pads arrays to tiles of 8x128.
    assert share < memory["arguments"] < 1.4 * share
    assert phase["fits"] and memory["left"] == int(hbm) - memory["used"] > 0


def check_data_parallel(planned, phase, layers, width):
    """Gradients are reduced, and metrics, and nothing else."""
    assert phase["collectives"].keys() == {"all-reduce"}
    # The word table's gradient is reduced twice: as the embeddings' and as the decoder's. Of the
    # position table only the rows in use have one, and the keys' biases have none.
    gradients = planned["parameters"] + (30592 - (512 - 128) - layers) * width
    assert 0 < phase["collectives"]["all-reduce"]["bytes"] - 4 * gradients < 100


def check_fsdp(planned, phase, _, width):
    """No collective is larger than a layer: the word table is moved in parts, or not at all."""
    assert {"all-gather", "reduce-scatter"} <= phase["collectives"].keys()
    assert phase["largest_collective_bytes"] <= 4 * (12 * width**2 + 13 * width)
