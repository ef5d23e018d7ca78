"""Checkpoints as google-research/bert saved them are read with everything in them."""

import contextlib
import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import hugging_face_models as models
import jax
import numpy as np
import pytest
from hugging_face_models import CASES

from bert_jax.convert import main
from bert_jax.errors import UserError
from bert_jax.formats.hugging_face import read_model
from bert_jax.formats.tensorflow_checkpoint import read_tensorflow_checkpoint
from bert_jax.models.description import Head
from bert_jax.pretrained import load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of TensorFlow's own making
    # PyTorch for GPUs brings Triton and imports it late, which crashes once TensorFlow is there.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    tensorflow = pytest.importorskip("tensorflow")

# google-research/bert's names, from those of PyTorch: the pieces that differ.
RENAMED = {
    "cls.predictions.bias": "cls/predictions/output_bias",
    "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
    "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    "classifier.weight": "output_weights",
    "classifier.bias": "output_bias",
    "qa_outputs.weight": "cls/squad/output_weights",
    "qa_outputs.bias": "cls/squad/output_bias",
}


LOWER_CASED = "text is lower-cased, for few tokens of vocab.txt have capitals"


def tensorflow_name(name: str) -> tuple[str, bool]:
    """The variable's name, and whether it is the transposed kernel of a dense layer."""
    if name in RENAMED:
        return RENAMED[name], False
    path = name.replace(".", "/").replace("encoder/layer/", "encoder/layer_")
    if "LayerNorm" in name:
        return path.replace("weight", "gamma").replace("bias", "beta"), False
    if "_embeddings" in name:
        return path.removesuffix("/weight"), False
    return path.replace("weight", "kernel"), path.endswith("weight")


def write_checkpoint(directory: Path, case_name: str) -> tuple[Path, dict[str, np.ndarray]]:
    """Saves variables, their Adam slots and the step as TensorFlow 1 did."""
    model = models.make_model(CASES[case_name])
    variables = {}
    for name, parameter in model.named_parameters():
        path, is_kernel = tensorflow_name(name)
        array = parameter.detach().numpy()
        variables[path] = array.T if is_kernel else array
    slots = {f"{name}/adam_{slot}": array for name, array in variables.items() for slot in "mv"}
    slots |= {name: np.float32(1) for name in ("beta1_power", "beta2_power", "loss_scale")}
    directory.mkdir()
    with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
        for name, array in (variables | slots).items():
            tensorflow.compat.v1.get_variable(name, initializer=array)
        tensorflow.compat.v1.get_variable("global_step", initializer=np.int64(7))
        session.run(tensorflow.compat.v1.global_variables_initializer())
        saver = tensorflow.compat.v1.train.Saver()
        saver.save(session, str(directory / "bert_model.ckpt"), write_meta_graph=False)
    fields: dict[str, Any] = {
        key: value for key, value in model.config.to_dict().items() if key in models.SHAPE
    }
    (directory / "bert_config.json").write_text(json.dumps(fields | {"hidden_act": "gelu"}))
    (directory / "vocab.txt").write_text("\n".join(models.VOCABULARY) + "\n")
    model.save_pretrained(directory.with_name("theirs"))
    models.write_tokenizer(directory.with_name("theirs"))
    return directory / "bert_model.ckpt", variables


@pytest.mark.parametrize("name", ["pretraining", "classification", "answering"])
def test_a_checkpoint_equals_its_transformers_twin(name: str, tmp_path: Path) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "google", name)
    model = read_tensorflow_checkpoint(checkpoint)
    twin = read_model(tmp_path / "theirs")
    assert model.description.head is twin.description.head
    assert model.description.config == twin.description.config
    assert model.tokenizer.hash == twin.tokenizer.hash
    assert jax.tree.structure(model.params) == jax.tree.structure(twin.params)
    jax.tree.map(np.testing.assert_array_equal, model.params, twin.params)
    assert model.notes == (LOWER_CASED,)


def test_the_command_makes_a_workdir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "google", "pretraining")
    assert main(["from-tf", f"{checkpoint}.index", str(tmp_path / "work")]) == 0
    assert capsys.readouterr().out == f"note: {LOWER_CASED}\nwrote {tmp_path / 'work'}\n"
    loaded = load(tmp_path / "work")
    assert loaded.description.head is Head.PRETRAINING
    assert loaded.record is not None
    assert loaded.record.config["source"] == "bert_model.ckpt.index"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "google", "pretraining")
    with pytest.raises(UserError, match=r"there is no other\.ckpt\.index"):
        read_tensorflow_checkpoint(checkpoint.with_name("other.ckpt"))
    data = next(checkpoint.parent.glob("*.data-*"))
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"bert_model\.ckpt is damaged or incomplete"):
        read_tensorflow_checkpoint(checkpoint)
    checkpoint.with_name("bert_config.json").unlink()
    with pytest.raises(UserError, match=r"bert_config\.json cannot be read"):
        read_tensorflow_checkpoint(checkpoint)


def test_tensorflow_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "google", "pretraining")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tensorflow\]'"):
        main(["from-tf", str(checkpoint), str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()
