"""Whole runs of an adapted model: the same on any mesh, resumed, its base untouched."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bert_jax.models.adaptation import added_by_adaptation
from bert_jax.pretrained import load

pytestmark = pytest.mark.slow
RECIPE = """
import ml_collections
from bert_jax.config_file import load_config

def get_config(argument):
    config = load_config(f"configs/pretrain.py:{argument}")
    config.model.update({"lora_rank": 4, "adapter_width": 8})
    config.freeze = ml_collections.ConfigDict({"layers": 1})
    config.optimizer.layer_decay = 0.9
    return config
"""
SETTINGS = (
    "--config.total_steps=4",
    "--config.evaluate_every_steps=2",
    "--config.checkpoint_every_steps=2",
    "--config.batch_size=16",
    "--config.data.max_length=32",
    "--config.log_every_steps=1",
    "--config.optimizer.learning_rate=1e-2",
    "--config.optimizer.warmup_steps=0",
)


@pytest.fixture
def adapted_run(tmp_path, corpus_directory, run_program, read_numbers):
    """Trains in a directory of that name; gives the metrics and what was said."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    config = f"{tmp_path}/recipe.py:L2_H128,corpus={corpus_directory}"

    def train(name: str, *overrides: str, devices: int = 1):
        command = ("--config", config, "--workdir", str(tmp_path / name), *SETTINGS, *overrides)
        finished = run_program("train", *command, devices=devices)
        assert finished.returncode == 0, finished.stderr
        return read_numbers(tmp_path / name), finished.stderr

    return train


def test_adapted_runs_do_not_depend_on_the_mesh(tmp_path: Path, adapted_run) -> None:
    expected, said = adapted_run("one")
    assert "  trained     " in said
    mesh = (f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor"))
    spread, _ = adapted_run("spread", *mesh, devices=8)
    # Back to step 2, as if the run had been killed there.
    (tmp_path / "spread" / "checkpoints" / "4").rename(tmp_path / "gone")
    resumed, _ = adapted_run("spread", devices=2)
    for records in (spread, resumed):
        assert len(records) == len(expected) == 4
        for record, wanted in zip(records, expected, strict=True):
            assert record == pytest.approx(wanted, rel=5e-5, abs=5e-5)

    early, late = (load(tmp_path / "one", step).params["encoder"] for step in ("2", "4"))
    early, late = (flatten_dict(jax.tree.map(np.asarray, tree)) for tree in (early, late))
    changed = {path for path in early if not np.array_equal(early[path], late[path])}
    norms = functools.partial(filter, lambda path: path[-2].endswith("norm"))
    added = {path for path in early if added_by_adaptation(path)}
    assert changed <= added | set(norms(early))
    assert {path[-1] for path in changed} >= {"lora_a", "lora_b", "kernel", "scale"}
    for path in changed:
        if path[0] == "layers":
            np.testing.assert_array_equal(early[path][0], late[path][0])
