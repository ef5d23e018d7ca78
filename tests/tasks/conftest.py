"""What the tests of fine-tuning tasks share: a vocabulary of words, and tiny configs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import pytest

from bert_jax.config_file import load_config
from bert_jax.data.tokenizer import SPECIAL_TOKENS

ROOT = Path(__file__).parents[2]
WORDS = ("red", "green", "blue", "cat", "dog", "cow", "one", "two", "right", "wrong")
TINY = {"layers": 1, "width": 16, "heads": 2, "feed_forward_width": 32, "max_positions": 32}


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of a few whole words."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n")
    return path


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, Sequence[dict[str, Any]]], Path]:
    """Writes JSON lines: (name, rows)."""

    def write(name: str, rows: Sequence[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def tiny_config(vocabulary_file: Path) -> Callable[..., ml_collections.ConfigDict]:
    """A recipe for a tiny encoder with random weights: (recipe, data settings, **settings)."""

    def make(recipe: str, data: dict[str, Any], **settings: Any) -> ml_collections.ConfigDict:
        config = load_config(str(ROOT / "configs" / recipe))
        config.vocabulary = str(vocabulary_file)
        config.model.update(TINY)
        config.batch_size = 4
        config.data.max_length = 16
        config.data.update({name: str(v) if isinstance(v, Path) else v for name, v in data.items()})
        config.update(settings)
        return config

    return make
