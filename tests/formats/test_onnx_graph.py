"""ONNX graphs compute what the models compute, in onnxruntime."""

import sys
from pathlib import Path

import hugging_face_models as models
import numpy as np
import pytest
import transformers
from hugging_face_models import CASES
from random_params import random_params

from bert_jax.convert import main
from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.training.assets import model_assets
from bert_jax.training.checkpoints import Checkpoints, RunRecord
from bert_jax.training.state import TrainState

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_what_pytorch_computes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    reference = models.write_model(tmp_path / "theirs", case)
    main(["to-onnx", str(tmp_path / "theirs"), str(tmp_path / "onnx")])
    session = onnxruntime.InferenceSession(
        tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    outputs = [output.name for output in session.get_outputs()]
    for rows, length in ((3, 12), (1, 20), (5, 4)):
        batch = models.inputs(rows, length)
        # Not a prefix: the second real token is not to be looked at.
        batch["attention_mask"][:, 1] = 0
        theirs = models.their_outputs(reference, batch)
        real = batch["attention_mask"]
        if case.architecture == "BertForMultipleChoice":
            batch = {key: array[None] for key, array in batch.items()}
        ours = dict(zip(outputs, session.run(None, batch), strict=True))
        models.assert_same_outputs(ours, theirs, real)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "onnx")
    assert tokenizer("the cat").input_ids == [2, 5, 6, 3]
    assert transformers.AutoConfig.from_pretrained(tmp_path / "onnx").hidden_size == 24


def test_a_graph_without_a_pooler(tmp_path: Path) -> None:
    models.write_model(tmp_path / "theirs", CASES["masked"])
    main(["to-hf", str(tmp_path / "theirs"), str(tmp_path / "bare"), "--head", "none"])
    main(["to-onnx", str(tmp_path / "bare"), str(tmp_path / "onnx")])
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state"]
    assert np.isfinite(session.run(None, models.inputs())[0]).all()


def test_a_graph_that_reads_the_mean(tmp_path: Path) -> None:
    """And no class of transformers does, so that `to-hf` refuses."""
    config = BertConfig(
        vocabulary_size=8, layers=1, width=16, heads=2, feed_forward_width=32, max_positions=20
    )
    description = ModelDescription(config, Head.CLASSIFICATION, ("bad", "good"), pooler=False)
    params = random_params(description.initialise)
    vocabulary = WordPieceTokenizer([*SPECIAL_TOKENS, "the", "cat", "sat"], lowercase=True)
    assets = model_assets(description, vocabulary)
    with Checkpoints(tmp_path / "run") as checkpoints:
        record = RunRecord(1, {"task": "test"}, {}, assets, {}, [])
        checkpoints.save(TrainState(1, params, None), record)
    main(["to-onnx", str(tmp_path / "run"), str(tmp_path / "onnx")])
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    batch = {
        "input_ids": np.arange(24).reshape(3, 8) % 8,
        "attention_mask": (np.arange(8) < np.array([[8], [5], [1]])).astype(np.int64),
        "token_type_ids": np.zeros((3, 8), np.int64),
    }
    ids, lengths = batch["input_ids"].astype(np.int32), np.array([8, 5, 1], np.int32)
    expected = description.model().apply(
        {"params": params}, ids, np.zeros_like(ids), lengths, deterministic=True
    )
    np.testing.assert_allclose(session.run(None, batch)[0], expected, atol=2e-5)
    with pytest.raises(UserError, match="no BERT for classification that reads the mean of all"):
        main(["to-hf", str(tmp_path / "run"), str(tmp_path / "theirs")])
    main(["to-hf", str(tmp_path / "run"), str(tmp_path / "bare"), "--head", "none"])
    assert (tmp_path / "bare" / "model.safetensors").exists()


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write_model(tmp_path / "theirs", CASES["encoder"])
    monkeypatch.delitem(sys.modules, "bert_jax.formats.onnx_graph", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[onnx\]'"):
        main(["to-onnx", str(tmp_path / "theirs"), str(tmp_path / "onnx")])
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
