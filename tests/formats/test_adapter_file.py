import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.formats.adapter_file import base_fingerprint, save_adapter
from bert_jax.models.adaptation import adaptation_params
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.pretrained import Pretrained, load_adapter
from bert_jax.training.sharding import unbox

CONFIG = BertConfig(
    vocabulary_size=50, layers=2, width=32, heads=2, feed_forward_width=64, max_positions=16
)
ADAPTATIONS = {
    "lora": {"lora_rank": 2},
    "adapters": {"adapter_width": 4},
    "both": {"lora_rank": 2, "lora_targets": ("key", "attention_output"), "adapter_width": 4},
    "head only": {},
}


@functools.cache
def tokenizer() -> WordPieceTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(45))]
    return WordPieceTokenizer(words, lowercase=True)


def draw(description: ModelDescription, seed: int) -> dict[str, Any]:
    shapes = jax.eval_shape(lambda key: unbox(description.initialise(key)), jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    params["encoder"]["embeddings"]["word"][50:] = 0
    return params


def make_base(seed: int = 0) -> Pretrained:
    description = ModelDescription(CONFIG, Head.PRETRAINING)
    return Pretrained(description, draw(description, seed), tokenizer())


def adapt(base: Pretrained, adaptation: dict[str, Any]) -> Pretrained:
    """A model trained on the base."""
    config = dataclasses.replace(base.config, hidden_dropout=0.2, **adaptation)
    description = ModelDescription(config, Head.TAGGING, ("person", "place"), max_length=16)
    trained = flatten_dict(draw(description, seed=7))
    kept = flatten_dict({"encoder": base.params["encoder"]})
    norms = flatten_dict(adaptation_params(draw(description, seed=7)))
    return Pretrained(description, unflatten_dict(trained | kept | norms), base.tokenizer)


def save(path: Path, adapted: Pretrained, base: Pretrained) -> None:
    fingerprint = base_fingerprint(base.params, base.config)
    save_adapter(path, adapted.params, adapted.description, fingerprint)


@pytest.mark.parametrize("adaptation", ADAPTATIONS.values(), ids=ADAPTATIONS)
def test_what_is_saved_is_loaded_onto_its_base(tmp_path: Path, adaptation: dict[str, Any]) -> None:
    base = make_base()
    adapted = adapt(base, adaptation)
    path = tmp_path / "tagger.safetensors"
    save(path, adapted, base)
    loaded = load_adapter(path, base)
    assert loaded.description == adapted.description
    assert loaded.tokenizer is base.tokenizer
    assert jax.tree.structure(loaded.params) == jax.tree.structure(adapted.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, adapted.params)
    # The word table is shared, and not in the file.
    word = base.params["encoder"]["embeddings"]["word"]
    assert loaded.params["encoder"]["embeddings"]["word"] is word
    assert path.stat().st_size < 0.6 * sum(leaf.nbytes for leaf in jax.tree.leaves(base.params))
    assert [file.name for file in tmp_path.iterdir()] == ["tagger.safetensors"]
    # The one on the other: what was loaded before is replaced.
    if "adapter_width" not in adaptation:
        again = load_adapter(path, loaded)
        jax.tree.map(np.testing.assert_array_equal, again.params, adapted.params)


def test_the_fingerprint_is_of_the_base_encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base()
    fingerprint = base_fingerprint(base.params, base.config)
    adapted = adapt(base, ADAPTATIONS["lora"])
    assert base_fingerprint(adapted.params, adapted.config) == fingerprint
    on_device = jax.tree.map(jax.numpy.asarray, base.params)
    assert base_fingerprint(on_device, base.config) == fingerprint
    # Neither heads nor the padding of the vocabulary count.
    heads = base.params | {"pooler": {}, "mlm_head": {}}
    table = base.params["encoder"]["embeddings"]["word"]
    embeddings = base.params["encoder"]["embeddings"] | {"word": table[:64]}
    repadded = heads | {"encoder": base.params["encoder"] | {"embeddings": embeddings}}
    assert base_fingerprint(repadded, base.config) == fingerprint
    # Every array of the encoder does.
    seen = {fingerprint, base_fingerprint(base.params, dataclasses.replace(CONFIG, heads=1))}
    assert len(seen) == 1
    for path in flatten_dict({"encoder": base.params["encoder"]}):
        flat = {name: leaf.copy() for name, leaf in flatten_dict(base.params).items()}
        flat[path].flat[0] += 1
        seen.add(base_fingerprint(unflatten_dict(flat), base.config))
    assert len(seen) == 1 + len(flatten_dict(base.params["encoder"]))


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = make_base()
    path = tmp_path / "tagger.safetensors"
    save(path, adapt(base, ADAPTATIONS["lora"]), base)
    with pytest.raises(UserError, match=r"tagger.safetensors was trained on another base model"):
        load_adapter(path, make_base(seed=1))


@pytest.mark.parametrize("name", ["lora", "head only"])
def test_an_encoder_that_was_trained_itself_is_not_saved(tmp_path: Path, name: str) -> None:
    adapted = adapt(make_base(), ADAPTATIONS[name])
    with pytest.raises(UserError, match="is not the base that it should share"):
        save(tmp_path / "tagger.safetensors", adapted, make_base(seed=1))
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_none(tmp_path: Path) -> None:
    base = make_base()
    with pytest.raises(UserError, match="does not exist"):
        load_adapter(tmp_path / "missing.safetensors", base)
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(tmp_path, base)
    other = tmp_path / "other.safetensors"
    for metadata in ({}, {"format": "pt"}, {"format": "bert_jax adapter"}):
        safetensors.numpy.save_file({"weight": np.zeros(3)}, other, metadata)
        with pytest.raises(UserError, match="is no adapter file"):
            load_adapter(other, base)


def rewritten(tensors: dict[str, np.ndarray], path: Path) -> Path:
    """A file with the header of another and these tensors."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    changed = path.with_name("changed.safetensors")
    safetensors.numpy.save_file(tensors, changed, metadata)
    return changed


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    base = make_base()
    path = tmp_path / "tagger.safetensors"
    save(path, adapt(base, ADAPTATIONS["lora"]), base)
    tensors = safetensors.numpy.load_file(path)
    name = "classifier/kernel"
    for wrong in (
        {key: tensor for key, tensor in tensors.items() if key != name},
        tensors | {"classifier/scale": tensors[name]},
        tensors | {name: np.ascontiguousarray(tensors[name].T)},
        tensors | {name: tensors[name].astype(np.float16)},
    ):
        with pytest.raises(UserError, match=r"is damaged: its parameter classifier/"):
            load_adapter(rewritten(wrong, path), base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["O", "O", "O"]}, "alike or no texts"),
        ({"labels": [1, 2, 3]}, "alike or no texts"),
        ({"max_length": "x"}, "max_length is 'x'; give"),
    ],
)
def test_descriptions_of_no_model(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    base = make_base()
    path = tmp_path / "tagger.safetensors"
    save(path, adapt(base, ADAPTATIONS["lora"]), base)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    metadata["description"] = json.dumps(json.loads(metadata["description"]) | change)
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata)
    with pytest.raises(UserError, match=f"tagger.safetensors is damaged: .*{message}"):
        load_adapter(path, base)


@functools.cache
def saved_bytes(directory: Path) -> tuple[Pretrained, bytes]:
    base = make_base()
    save(directory / "whole.safetensors", adapt(base, ADAPTATIONS["lora"]), base)
    return base, (directory / "whole.safetensors").read_bytes()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(directory: Path, data: st.DataObject) -> None:
    """Cut anywhere it is refused; with another byte in its header nothing else may happen."""
    base, whole = saved_bytes(directory)
    damaged = directory / "damaged.safetensors"
    if data.draw(st.booleans(), label="cut"):
        damaged.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), label="length")])
        with pytest.raises(UserError):
            load_adapter(damaged, base)
        return
    header = 8 + int.from_bytes(whole[:8], "little")
    position = data.draw(st.integers(0, header - 1), label="position")
    byte = data.draw(st.integers(0, 255), label="byte")
    damaged.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
    try:
        loaded = load_adapter(damaged, base)
    except UserError as refused:
        reason = str(refused)
    else:
        assert loaded.description.head is Head.TAGGING
        return
    assert reason.startswith(str(damaged))
