"""What makes a step slow, seen in the compiled program and in the loop, without a clock.

The bounds are what jax 0.10.2 and 0.12.0 compile, with some room. A change that passes one for a
good reason (say, more layers are unrolled) may move it; ``docs/performance.md`` has the reasons.
"""

import jax
import pytest
from toy_task import get_config

import bert_jax.train
from bert_jax.config_file import load_config
from bert_jax.tasks.program import abstract_batch, make_program
from bert_jax.tasks.registry import load_task
from bert_jax.training.preemption import Preemption
from bert_jax.training.run_description import bytes_per_device
from bert_jax.training.sharding import make_mesh
from bert_jax.training.workdir import Workdir

BATCH, LENGTH = 16, 64


@pytest.fixture(scope="module")
def make_step(corpus_directory):
    """Makes a pretraining step: (size, **overrides of the model) -> task, program, batch, mesh."""

    def make(size, *, seed=0, learning_rate=1e-4, **model):
        config = load_config(f"configs/pretrain.py:{size},corpus={corpus_directory}")
        config.data.max_length, config.batch_size, config.seed = LENGTH, BATCH, seed
        config.optimizer.learning_rate = learning_rate
        config.model.update(model)
        task, mesh = load_task(config), make_mesh(config.mesh)
        batch = abstract_batch(task, task.phases[0], BATCH, mesh)
        return task, make_program(task, mesh), batch, mesh

    return make


def lowered(program, batch):
    """The program as the compiler gets it."""
    return program.step.lower(program.state, batch, program.make_settings()).as_text()


def test_runs_of_other_seeds_and_learning_rates_share_the_program(make_step):
    def text(seed, learning_rate):
        _, program, batch, _ = make_step("L1_H64", seed=seed, learning_rate=learning_rate)
        return lowered(program, batch)

    assert text(0, 1e-4) == text(7, 5e-3)


def test_rolled_layers_are_in_the_program_once(make_step):
    def dots(layers, unroll):
        _, program, batch, _ = make_step("L2_H128", layers=layers, unroll=unroll)
        return lowered(program, batch).count(" stablehlo.dot_general ")

    assert dots(3, unroll=1) == dots(2, unroll=1) < dots(3, unroll=3)


def count(compiled, operation):
    return compiled.as_text().count(f" {operation}(")


def test_the_step_computes_moves_and_keeps_no_more_than_it_must(make_step):
    task, program, batch, mesh = make_step("L2_H128")
    compiled = program.compile(batch, mesh)
    # Products: of each layer 6 forward, those of attention 2, each with two of the backward pass,
    # the heads', and the gradients of what is added to every row; none is computed twice.
    assert count(compiled, "dot") <= 64
    # The embeddings' gradients; not the logits', nor those of gathered positions.
    assert count(compiled, "scatter") <= 2
    assert count(compiled, "sort") == 0
    assert count(compiled, "custom-call") == 0
    assert count(compiled, "fusion") <= 650
    costs = compiled.cost_analysis()
    formula = task.flops_per_token(LENGTH) * BATCH * LENGTH
    assert 1.0 <= costs["flops"] / formula <= 1.08
    assert costs["bytes accessed"] <= 270e6
    # Every array of the state is updated where it lies.
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == bytes_per_device(program.state)
    assert memory.temp_size_in_bytes <= 26e6


def test_nothing_is_compiled_or_moved_by_itself_in_the_loop(tmp_path, monkeypatch):
    compilations = []

    def note(event: str, seconds: float, **rest: object) -> None:
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    seen = {}
    follow = bert_jax.train.Monitor.follow

    def watch(self, step, *rest):
        follow(self, step, *rest)
        seen[step] = len(compilations)
        # Steps 1 and 2 meet everything for the first time; after step 9 the run ends.
        moving = "disallow" if 2 <= step < 9 else "allow"
        jax.config.update("jax_transfer_guard_host_to_device", moving)

    put = bert_jax.train.to_global

    def put_batch(*arguments):
        with jax.transfer_guard_host_to_device("allow"):  # the one that there has to be
            return put(*arguments)

    monkeypatch.setattr(bert_jax.train.Monitor, "follow", watch)
    monkeypatch.setattr(bert_jax.train, "to_global", put_batch)
    config = get_config()
    config.total_steps, config.evaluate_every_steps, config.checkpoint_every_steps = 10, 0, 0
    try:
        assert bert_jax.train.train(config, Workdir(tmp_path), Preemption()) == 0
    finally:
        jax.config.update("jax_transfer_guard_host_to_device", "allow")
        jax.monitoring.clear_event_listeners()
    assert list(seen) == list(range(1, 11))
    assert seen[1] > 0
    assert seen[10] == seen[2]
