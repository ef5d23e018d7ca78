"""The same losses whatever the mesh, on virtual CPU devices in processes of their own."""

import pytest
from layouts import MESHES, assert_finished, assert_same, every_layout, mesh_flags

pytestmark = pytest.mark.slow
STEPS = ("--config.total_steps=6", "--config.evaluate_every_steps=3")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, run_program, small_run, read_numbers):
    workdir = tmp_path_factory.mktemp("one-device")
    finished = run_program("train", *small_run(workdir, *STEPS, size="L2_H128"))
    assert finished.returncode == 0, finished.stderr
    return read_numbers(workdir)


@pytest.mark.parametrize("processes, mesh", every_layout([(1, MESHES[0]), (1, MESHES[3])]))
def test_losses_do_not_depend_on_the_layout(
    tmp_path, start_processes, small_run, read_numbers, one_device, processes, mesh
):
    # In chunks, as FSDP decodes where the word table is larger than a layer.
    chunks = ("--config.model.vocabulary_chunks=8",) if mesh.get("fsdp", 1) > 1 else ()
    arguments = small_run(tmp_path, *STEPS, *mesh_flags(mesh), *chunks, size="L2_H128")
    assert_finished(start_processes(processes, 8 // processes, *arguments))
    assert_same(read_numbers(tmp_path), one_device)


def test_a_run_goes_on_with_other_devices(
    tmp_path, run_program, small_run, read_numbers, one_device
):
    half = ("--config.total_steps=6", "--config.evaluate_every_steps=3")
    eight = run_program(
        "train",
        *small_run(
            tmp_path,
            *(*half, "--config.mesh.fsdp=8", "--config.checkpoint_every_steps=3"),
            size="L2_H128",
        ),
        devices=8,
    )
    assert eight.returncode == 0, eight.stderr
    # Back to step 3, as if the run had been killed there.
    (tmp_path / "checkpoints" / "6").rename(tmp_path / "gone")
    two = run_program("train", *small_run(tmp_path, *half, size="L2_H128"), devices=2)
    assert two.returncode == 0, two.stderr
    assert "devices 8 -> 2" in two.stderr
    assert_same(read_numbers(tmp_path), one_device)


def test_accumulation_equals_the_large_batch(tmp_path, run_program, small_run, read_numbers):
    plain = ("--config.model.hidden_dropout=0.0", "--config.model.attention_dropout=0.0")
    records = []
    for steps in (1, 4):
        workdir = tmp_path / str(steps)
        overrides = (*STEPS, *plain, f"--config.accumulation_steps={steps}")
        finished = run_program("train", *small_run(workdir, *overrides), devices=2)
        assert finished.returncode == 0, finished.stderr
        records.append(read_numbers(workdir))
    assert_same(records[1], records[0])


def test_a_batch_that_the_mesh_does_not_divide(tmp_path, run_program, small_run):
    refused = run_program("train", *small_run(tmp_path, "--config.batch_size=12"), devices=8)
    assert refused.returncode == 2
    assert "a batch size that is a multiple of 8" in refused.stderr
