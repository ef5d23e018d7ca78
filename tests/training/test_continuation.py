"""What is said of a run that goes on otherwise than it began."""

from pathlib import Path
from typing import Any

import pytest

from bert_jax.errors import UserError
from bert_jax.training.checkpoints import RunRecord
from bert_jax.training.continuation import changes, check_resumable


def record(step: int, **config: Any) -> RunRecord:
    return RunRecord(step, config, identity={}, assets={}, environment={}, notes=[])


def test_other_data_are_refused_and_what_may_have_made_them():
    before = record(8, max_length=128)._replace(identity={"data": "a"})
    # A version that knows more of the data goes on with what an older one saved.
    same = record(0, max_length=128)._replace(identity={"data": "a", "validation": "b"})
    check_resumable(before, same, 9, Path("runs/it"))
    other = record(0, max_length=64)._replace(identity={"data": "c", "validation": "b"})
    with pytest.raises(UserError) as told:
        check_resumable(before, other, 9, Path("runs/it"))
    assert str(told.value) == (
        "runs/it was trained with other data: a there, c now, perhaps by the settings max_length "
        "128 -> 64; give the same, or another --workdir"
    )


def test_another_batch_moves_the_place_in_the_data():
    before = record(1200, batch_size=8, data={"seed": 1})
    assert changes(before, record(0, batch_size=8, data={"seed": 1})) == []
    assert changes(before, record(0, batch_size=4, data={"seed": 1})) == [
        "changed at step 1,200: batch_size 8 -> 4, the data go on as after 1,200 batches of 4"
    ]
