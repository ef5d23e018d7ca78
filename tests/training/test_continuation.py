"""What is said of a run that goes on otherwise than it began."""

from typing import Any

from bert_jax.training.checkpoints import RunRecord
from bert_jax.training.continuation import changes


def record(step: int, **config: Any) -> RunRecord:
    return RunRecord(step, config, identity={}, assets={}, environment={}, notes=[])


def test_another_batch_moves_the_place_in_the_data():
    before = record(1200, batch_size=8, data={"seed": 1})
    assert changes(before, record(0, batch_size=8, data={"seed": 1})) == []
    assert changes(before, record(0, batch_size=4, data={"seed": 1})) == [
        "changed at step 1,200: batch_size 8 -> 4, the data go on as after 1,200 batches of 4"
    ]
