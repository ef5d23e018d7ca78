"""Every recipe resolves to what is on record, so that no default changes unseen."""

import json
import os
from pathlib import Path

import pytest

from bert_jax.config_file import load_config
from bert_jax.errors import UserError

ROOT = Path(__file__).parents[1]
RECIPES = (
    "pretrain.py:tiny",
    "pretrain.py:base",
    "pretrain.py:large,corpus=data/mine,data.max_length=512",
    "demo.py",
    "glue.py:sst2",
    "glue.py:stsb",
    "glue.py:mnli",
    "classify.py",
    "regress.py",
    "choose.py",
    "embed.py",
    "embed.py:stsb",
    "squad.py:v1",
    "squad.py:v2",
    "tag.py",
    "adapt.py:corpus=data/mine",
)
# Keys that users type and scripts rely on, in every recipe.
COMMON_KEYS = (
    *("total_steps", "batch_size", "seed", "log_every_steps", "evaluate_every_steps"),
    *("checkpoint_every_steps", "mesh.data", "mesh.fsdp", "mesh.tensor", "init_from"),
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_resolved_config_is_on_record(recipe):
    config = load_config(str(ROOT / "configs" / recipe))
    for key in COMMON_KEYS:
        group, _, name = key.rpartition(".")
        assert name in (config[group] if group else config)
    resolved = json.dumps(config.to_dict(), indent=2) + "\n"
    name = recipe.replace(".py", "").replace(":", "-").replace(",", "-").replace("/", "_")
    golden = ROOT / "tests" / "golden" / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(resolved)
    assert resolved == golden.read_text(), (
        "the recipe resolves to something else now; if that is meant, write it down with "
        "UPDATE_GOLDEN=1 python -m pytest tests/test_configs.py"
    )


def test_wrong_arguments_name_the_right_ones():
    pretrain = str(ROOT / "configs" / "pretrain.py")
    with pytest.raises(UserError, match="did you mean 'base'"):
        load_config(f"{pretrain}:bass")
    with pytest.raises(UserError, match="did you mean --config.corpus"):
        load_config(f"{pretrain}:base,corpsu=data/mine")
