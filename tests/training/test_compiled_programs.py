"""Compiled programs are kept beside the runs, unless the user says otherwise."""

import jax
import pytest

from bert_jax.training.compiled_programs import DIRECTORY, keep_compiled_programs


@pytest.fixture(autouse=True)
def restored():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_they_are_kept_in_the_parent(tmp_path):
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled_programs(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / DIRECTORY)


@pytest.mark.parametrize("chosen", ["elsewhere", ""])
def test_the_user_s_choice_comes_first(tmp_path, chosen):
    jax.config.update("jax_compilation_cache_dir", chosen)
    keep_compiled_programs(tmp_path)
    assert jax.config.jax_compilation_cache_dir == chosen


def test_a_parent_that_cannot_be_written_keeps_none(tmp_path):
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled_programs(tmp_path / "absent")
    assert jax.config.jax_compilation_cache_dir is None
