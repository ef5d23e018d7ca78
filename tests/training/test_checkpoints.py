"""Few checkpoints are kept, the best among them; what cannot be used is named."""

import shutil

import jax
import jax.numpy as jnp
import pytest

from bert_jax.errors import UserError
from bert_jax.training.checkpoints import Checkpoints, RunRecord
from bert_jax.training.state import TrainState

ARRAYS = ("params/d", "params/ocdbt.process_0/d")  # an index of the numbers, and they themselves


def make_state(step=0, width=3):
    state = TrainState(
        jnp.asarray(step), {"layer": {"kernel": jnp.full((2, width), step)}}, {"count": step * 1.0}
    )
    return jax.tree.map(jnp.asarray, state)


def make_record(step):
    return RunRecord(step, {"seed": 0}, {}, {"tokenizer.json": "{}"}, {}, [])


def save_all(checkpoints, scores):
    for step, score in scores.items():
        checkpoints.note_score(step, 0, score)
        checkpoints.save(make_state(step), make_record(step))


def test_the_last_few_and_the_best_are_kept(tmp_path):
    scores = {1: 5.0, 2: 1.0, 3: 3.0, 4: float("nan"), 5: 2.0}
    with Checkpoints(tmp_path, keep_last=2, keep_best=True) as checkpoints:
        save_all(checkpoints, scores)
    for _ in range(2):  # also after it is opened again
        with Checkpoints(tmp_path, keep_last=2, keep_best=True) as checkpoints:
            assert checkpoints.steps() == [2, 4, 5]
            assert checkpoints.best() == 2
            assert checkpoints.choose("best") == 2
            assert checkpoints.choose("latest") == 5
            restored = checkpoints.restore(5, make_state())
    assert int(restored.step) == 5
    assert (restored.params["layer"]["kernel"] == 5).all()
    assert float(restored.optimizer_state["count"]) == 5


def test_who_saves_nothing_deletes_nothing(tmp_path):
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        save_all(checkpoints, {1: 1.0, 2: 2.0, 3: 3.0})
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        save_all(checkpoints, {4: 4.0})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [4]


def test_scores_of_another_phase_cannot_be_compared(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, keep_best=True) as checkpoints:
        assert checkpoints.note_score(1, 0, 1.0)
        checkpoints.save(make_state(1), make_record(1))
        assert not checkpoints.note_score(2, 0, 1.5)
        assert not checkpoints.note_score(2, 0, float("nan"))
        assert checkpoints.note_score(3, 1, 2.0)


def test_a_converted_model_is_loaded_but_not_gone_on_from(tmp_path):
    converted = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(converted.replace(optimizer_state=None), make_record(0))
        checkpoints.committed()
        params = checkpoints.restore_params(0, converted.params)
        assert (params["layer"]["kernel"] == 0).all()
        with pytest.raises(UserError, match="is a converted model, and no run to go on with"):
            checkpoints.restore(0, converted)


def test_a_record_is_read_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(7), make_record(7))
        assert checkpoints.committed() == [7]
        assert checkpoints.record(7) == make_record(7)


def test_what_is_missing_or_different_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        Checkpoints(tmp_path, read_only=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(7), make_record(7))
        checkpoints.committed()
        with pytest.raises(UserError, match="layer/kernel is 2×3 there and 2×4 here"):
            checkpoints.restore(7, make_state(width=4))
        with pytest.raises(UserError, match="has no checkpoint '8'; it has the steps 7"):
            checkpoints.choose("8")


def make_tables(rows):
    """A model of seven tokens whose tables have so many rows, and the moments of its optimizer."""
    real = jnp.arange(1.0, 15.0).reshape(7, 2)
    word = jnp.pad(real, ((0, rows - 7), (0, 0)))
    params = {"encoder": {"embeddings": {"word": word}}, "mlm_head": {"bias": word[:, 0]}}
    return TrainState(jnp.asarray(1), params, {"mu": jax.tree.map(jnp.square, params)})


@pytest.mark.parametrize("rows", [7, 8, 12])
def test_another_padding_of_the_vocabulary_is_loaded(tmp_path, rows):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_tables(8), make_record(1))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, make_tables(rows))
    expected = make_tables(rows)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, restored, expected))


def test_a_vocabulary_of_fewer_tokens_is_no_other_padding(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_tables(8), make_record(1))
    with Checkpoints(tmp_path) as checkpoints:
        smaller = jax.tree.map(lambda leaf: leaf[:6] if leaf.ndim else leaf, make_tables(8))
        with pytest.raises(UserError, match="more than 6 tokens"):
            checkpoints.restore(1, smaller)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), make_record(1))
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "params").touch()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert half.exists()  # a run may be writing it
    with Checkpoints(tmp_path) as checkpoints:
        assert not half.exists()
        assert checkpoints.steps() == [1]


def test_damaged_scores_are_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, {1: 5.0})
    (tmp_path / "scores.json").write_text("")
    with pytest.raises(UserError, match=r"scores\.json is damaged; restore it, or delete it"):
        Checkpoints(tmp_path, read_only=True)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")]
)
def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, error):
    def restore(*arguments, **keywords):
        raise error

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(7), make_record(7))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", restore)
        with pytest.raises(type(error)):
            checkpoints.restore_params(7, make_state().params)


@pytest.mark.parametrize("part", ["params", "run", "params/_METADATA", "run/metadata", *ARRAYS])
def test_a_damaged_checkpoint_is_named(tmp_path, part):
    # What is smaller, or can be compressed to it, would lie in the index.
    noise = {"layer": {"kernel": jax.random.normal(jax.random.key(0), (2, 5_000))}}
    state = make_state(7).replace(params=noise)

    def read(checkpoints):
        return checkpoints.record(7), checkpoints.restore_params(7, state.params)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, make_record(7))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        read(checkpoints)
    damaged = tmp_path / "checkpoints" / "7" / part
    if damaged.is_dir():
        shutil.rmtree(damaged)
    else:
        damaged.write_bytes(damaged.read_bytes()[:-9])
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(UserError, match="7 is damaged or incomplete .*; copy it again"),
    ):
        read(checkpoints)
