"""Directories of ``transformers`` are read, and written again, without losing anything."""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import hugging_face_models as models
import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from hugging_face_models import CASES, TEXTS

from bert_jax.convert import main
from bert_jax.errors import UserError
from bert_jax.formats.hugging_face import read_model
from bert_jax.formats.naming import to_tensors
from bert_jax.models.description import Head
from bert_jax.pretrained import load
from bert_jax.tasks.fill_mask import fill_masks

AUTO_CLASSES = {
    "BertModel": "AutoModel",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
}
PIPELINES = {
    "encoder": "feature-extraction",
    "masked": "fill-mask",
    "classification": "text-classification",
    "multi_label": "text-classification",
    "regression": "text-classification",
    "tagging": "token-classification",
}


@pytest.fixture
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged by ``transformers`` as a warning; Python's warnings are errors anyway."""
    transformers.logging.get_logger("transformers").addHandler(caplog.handler)
    yield
    transformers.logging.get_logger("transformers").removeHandler(caplog.handler)
    logged = caplog.get_records("call")
    assert [r.getMessage() for r in logged if r.levelno >= logging.WARNING] == []


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def edit_tensors(directory: Path, edit: Any) -> None:
    path = directory / "model.safetensors"
    safetensors.numpy.save_file(edit(safetensors.numpy.load_file(path)), path)


def assert_equal_params(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str, tmp_path: Path, silence: None) -> None:
    case = CASES[name]
    reference = models.write_model(tmp_path / "theirs", case)
    loaded = load(tmp_path / "theirs")
    assert loaded.description.head is case.head
    assert loaded.description.pooler is case.pooler
    assert loaded.notes == ()
    wanted_labels = ("no", "yes", "maybe") if "id2label" in case.settings else ()
    assert loaded.description.labels == wanted_labels

    batch = models.inputs()
    theirs = models.their_outputs(reference, batch)
    ours = models.our_outputs(loaded, batch)
    models.assert_same_outputs(ours, theirs, batch["attention_mask"])

    main(["from-hf", str(tmp_path / "theirs"), str(tmp_path / "work")])
    main(["to-hf", str(tmp_path / "work"), str(tmp_path / "back")])
    auto = getattr(transformers, AUTO_CLASSES[case.architecture])
    again = auto.from_pretrained(tmp_path / "back")
    assert type(again) is type(reference)
    assert again.config.problem_type == reference.config.problem_type or name in (
        "classification",  # said outright, where transformers would guess it
        "regression",
    )
    assert again.config.id2label == reference.config.id2label
    before, after = reference.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    tokenizers = [
        transformers.AutoTokenizer.from_pretrained(tmp_path / part) for part in ("theirs", "back")
    ]
    pairs = [tokenizer(list(TEXTS), list(TEXTS[::-1])) for tokenizer in tokenizers]
    assert pairs[0].data == pairs[1].data
    if name in PIPELINES:
        pipeline = transformers.pipeline(PIPELINES[name], str(tmp_path / "back"))
        assert pipeline("the [MASK] sat")
    assert load(tmp_path / "back").description == loaded.description


@pytest.mark.parametrize("name", ["pretraining", "tagging"])
def test_every_kind_of_weights_file_gives_the_same(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    reference = models.write_model(tmp_path / "safetensors", case)
    wanted = read_model(tmp_path / "safetensors").params
    state = reference.state_dict()

    def directory(kind: str) -> Path:
        path = tmp_path / kind
        shutil.copytree(tmp_path / "safetensors", path)
        (path / "model.safetensors").unlink()
        return path

    torch.save(state, directory("bin") / "pytorch_model.bin")
    reference.save_pretrained(directory("shards"), max_shard_size="5KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    path = directory("bin_shards")
    weight_map = {key: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, key in enumerate(state)}
    for shard in set(weight_map.values()):
        torch.save({k: v for k, v in state.items() if weight_map[k] == shard}, path / shard)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tree = flax_tree({key: value.numpy() for key, value in state.items()})
    flax_file = directory("flax") / "flax_model.msgpack"
    flax_file.write_bytes(flax.serialization.msgpack_serialize(tree))
    old_names = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in state.items()
    }
    torch.save(old_names, directory("old_names") / "pytorch_model.bin")
    for kind in ("bin", "shards", "bin_shards", "flax", "old_names"):
        model = read_model(tmp_path / kind)
        assert model.notes == (), kind
        assert_equal_params(model.params, wanted)


def flax_tree(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the Flax models of ``transformers`` 4 saved: their names, kernels as [in, out]."""
    flat = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        if name.endswith("decoder.weight") or name.endswith("decoder.bias"):
            continue
        if "LayerNorm" in module and leaf == "weight":
            leaf = "scale"
        elif "_embeddings" in module:
            leaf = "embedding"
        elif leaf == "weight":
            leaf, array = "kernel", array.T.copy()
        flat[(*module.split("."), leaf)] = array
    return flax.traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    reference = models.write_model(tmp_path, CASES["encoder"])
    state = {name: tensor.to(dtype) for name, tensor in reference.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    params = read_model(tmp_path).params
    word = state["embeddings.word_embeddings.weight"].to(torch.float32).numpy()
    table = params["encoder"]["embeddings"]["word"]
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[: len(word)], word)
    assert not table[len(word) :].any()
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_equal_params(read_model(tmp_path).params, params)


def test_google_s_own_checkpoints_keep_both_heads(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["pretraining"])
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    model = read_model(tmp_path)
    assert model.description.head is Head.PRETRAINING
    assert model.description.pooler
    assert {"pooler", "next_sentence_head", "mlm_head"} < model.params.keys()


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("multi_label", "choice")])
def test_without_a_named_class_the_tensors_decide(name: str, tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES[name])
    wanted = read_model(tmp_path).description
    edit_config(tmp_path, architectures=None)
    assert read_model(tmp_path).description == wanted


def test_an_encoder_may_have_no_pooler(tmp_path: Path) -> None:
    models.write_model(tmp_path / "theirs", CASES["encoder"])
    edit_tensors(
        tmp_path / "theirs", lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k}
    )
    model = read_model(tmp_path / "theirs")
    assert not model.description.pooler
    assert model.params.keys() == {"encoder"}
    assert model.notes == ()


def test_what_is_missing_or_unused_is_named(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["encoder"])
    edit_config(tmp_path, architectures=["BertForTokenClassification"], classifier_dropout=0.3)
    model = read_model(tmp_path)
    assert model.description.labels == ("LABEL_0", "LABEL_1")
    edit_config(tmp_path, num_labels=4)
    assert len(read_model(tmp_path).description.labels) == 4
    assert model.params["classifier"]["kernel"].any()
    notes = "\n".join(model.notes)
    assert "classifier_dropout=0.3 was not used" in notes
    for leaf in ("weight", "bias"):
        assert f"classifier.{leaf} was missing and was initialised" in notes
        assert f"bert.pooler.dense.{leaf} was not used" in notes
    assert len(model.notes) == 5


def test_rows_without_a_token_are_kept(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["masked"], vocab_size=24)
    model = load(tmp_path)
    assert model.config.vocabulary_size == 24
    assert model.notes == ("the last 5 rows of the word table have no token",)
    fillings = fill_masks(
        model.model, model.params, model.tokenizer, "the [MASK]", 24, max_length=20
    )
    assert set(fillings[0].tokens) == set(models.VOCABULARY)


REFUSALS = {
    "another architecture": ({"model_type": "roberta"}, "is a roberta model; only BERT"),
    "another class": ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel, which cannot be"),
    "another activation": ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new', and only"),
    "other positions": (
        {"position_embedding_type": "relative_key"},
        "position_embedding_type='relative_key', and only",
    ),
    "a decoder": ({"is_decoder": True}, "is_decoder=True, and only"),
    "another size": ({"hidden_size": 48}, r"as float32\[19, 24\], and its config asks for"),
    "too many layers": ({"num_hidden_layers": 3}, "lacks bert.encoder.layer.2.attention"),
    "too few embeddings": ({"vocab_size": 9}, "vocabulary of 19 tokens and embeddings for 9"),
    "other labels": ({"id2label": {"0": "a", "1": "b"}}, "names 2 labels .* has 3 outputs"),
    "several values": ({"problem_type": "regression"}, "regression to 3 numbers"),
    "an unknown problem": ({"problem_type": "ranking"}, "problem_type='ranking'; use one of"),
    "a word for a number": ({"hidden_size": "24"}, "hidden_size='24', which is no int"),
    "half a layer": ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5, which is no int"),
    "no epsilon": ({"layer_norm_eps": True}, "layer_norm_eps=True, which is no float"),
    "less than nothing": ({"layer_norm_eps": -1.0}, r"layer_norm_epsilon is -1\.0"),
    "labels alike": ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "labels are alike or no texts"),
    "no label": ({"id2label": {"0": "a", "1": None, "2": "b"}}, "labels are alike or no texts"),
    "a gap": ({"id2label": {"0": "a", "2": "b", "5": "c"}}, "0, 1, 2, ... without gaps"),
    "a list of labels": ({"id2label": ["a", "b", "c"]}, "0, 1, 2, ... without gaps"),
    "two problems": ({"problem_type": ["regression"]}, r"problem_type=\['regression'\]"),
    "a list for a name": ({"architectures": [["BertModel"]]}, r"architectures=\[\['BertModel'\]\]"),
    "half a character": ({"id2label": {"0": "\ud800", "1": "a", "2": "b"}}, "alike or no texts"),
    "more than memory": ({"intermediate_size": 2**31 - 1}, r"config asks for .*2147483647"),
    "more than 32 bits": ({"vocab_size": 10**12}, r"vocabulary_size is 10{12}; give a number from"),
    "no float": ({"layer_norm_eps": 10**400}, r"layer_norm_epsilon is 10+; give a number"),
    "no number": ({"initializer_range": math.nan}, "initializer_stddev is nan; give a number"),
    "a negative deviation": ({"initializer_range": -1.0}, r"initializer_stddev is -1\.0"),
    "a word for a list": ({"architectures": "BertModel"}, "architectures='BertModel'; make it"),
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("classifier")
    models.write_model(directory, CASES["classification"])
    return directory


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_be_converted_is_refused(
    refusal: str, classifier: Path, tmp_path: Path
) -> None:
    changes, message = REFUSALS[refusal]
    shutil.copytree(classifier, tmp_path / "theirs")
    edit_config(tmp_path / "theirs", **changes)
    with pytest.raises(UserError, match=message):
        main(["from-hf", str(tmp_path / "theirs"), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_json_without_a_bottom_is_refused(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json is damaged: it is no JSON"):
        read_model(tmp_path / "theirs")


def test_an_untied_output_layer_is_refused(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["masked"])
    edit_tensors(
        tmp_path,
        lambda tensors: tensors | {"cls.predictions.decoder.weight": np.ones((19, 24), np.float32)},
    )
    with pytest.raises(UserError, match=r"decoder.weight that differs from its .*word_embeddings"):
        read_model(tmp_path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["encoder"])
    edit_tensors(
        tmp_path, lambda tensors: {k: (v * 100).astype(np.int8) for k, v in tensors.items()}
    )
    with pytest.raises(UserError, match="as int8"):
        read_model(tmp_path)


def test_the_tokenizer_is_the_one_that_transformers_would_load(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["encoder"])
    settings = tmp_path / "tokenizer_config.json"
    fields = json.loads(settings.read_text())
    settings.write_text(json.dumps(fields | {"do_lower_case": False}))
    tokenizer = read_model(tmp_path).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert not tokenizer.lowercase
    for text in TEXTS:
        assert tokenizer.encode_with_masks(text) == theirs(text, add_special_tokens=False).input_ids
    for change, message in (
        ({"tokenize_chinese_chars": False}, "tokenize_chinese_chars=False"),
        ({"strip_accents": False}, "without stripping accents"),
        ({"word_tokenizer_type": "mecab"}, "word_tokenizer_type='mecab'"),
        ({"truncation_side": "left"}, "truncation_side='left'"),
        ({"cls_token": "the"}, "cls_token='the'"),
        ({"unk_token": {"content": "a"}}, "unk_token='a'"),
        ({"do_lower_case": "yes"}, "do_lower_case='yes'; make it true or false"),
        ({"model_max_length": [1]}, r"model_max_length=\[1\]; make it"),
        ({"added_tokens_decoder": ["a"]}, "added_tokens_decoder that does not give the content"),
        ({"added_tokens_decoder": {"5": {"content": 5}}}, "that does not give the content"),
    ):
        settings.write_text(json.dumps(fields | change))
        with pytest.raises(UserError, match=message):
            read_model(tmp_path)
    unlimited = {"do_lower_case": None, "model_max_length": float("inf")}
    settings.write_text(json.dumps(fields | unlimited | {"cls_token": {"content": "[CLS]"}}))
    assert read_model(tmp_path).tokenizer.size == tokenizer.size
    added = {"added_tokens_decoder": {"19": {"content": "<mask>"}}}
    settings.write_text(json.dumps(fields | added))
    assert read_model(tmp_path).notes == ("the added token '<mask>' is read as ordinary text",)


def test_a_tokenizer_that_is_its_file_alone_obeys_nothing_else(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["encoder"])
    settings, file = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    fields = json.loads(settings.read_text())
    fields |= {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}
    settings.write_text(json.dumps(fields))
    tokenizer = read_model(tmp_path).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.lowercase
    for text in TEXTS:
        assert tokenizer.encode_with_masks(text) == theirs(text, add_special_tokens=False).input_ids
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    with pytest.raises(UserError, match=r"does not put a text between \[CLS\] and \[SEP\]"):
        read_model(tmp_path)


def test_capitals_that_transformers_would_not_keep_are_told(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["encoder"])
    settings, file = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    fields = json.loads(settings.read_text())
    settings.write_text(json.dumps({k: v for k, v in fields.items() if k != "do_lower_case"}))
    assert read_model(tmp_path).notes == ()
    content = json.loads(file.read_text())
    content["normalizer"] |= {"lowercase": False, "strip_accents": None}
    file.write_text(json.dumps(content))
    (note,) = read_model(tmp_path).notes
    assert "transformers would lower-case; capitals are kept here" in note
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).tokenize("The") == ["the"]


def test_a_vocabulary_that_another_tokenizer_reads_is_refused(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["encoder"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(models.VOCABULARY) + "\n")
    config = tmp_path / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"tokenizer_class": "BertJapaneseTokenizer"}))
    with pytest.raises(UserError, match="read by the tokenizer BertJapaneseTokenizer"):
        read_model(tmp_path)
    config.write_text(json.dumps(fields | {"tokenizer_class": "BertTokenizer"}))
    assert read_model(tmp_path).tokenizer.size


def test_a_vocabulary_alone_is_enough(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["encoder"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"has no vocabulary; it needs tokenizer.json or vocab.txt"):
        read_model(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(models.VOCABULARY) + "\n")
    (tmp_path / "added_tokens.json").write_text('{"[USER]": 19}')
    model = read_model(tmp_path)
    assert model.tokenizer.vocabulary == models.VOCABULARY
    assert model.notes == ("the added token '[USER]' is read as ordinary text",)


def test_a_token_of_two_lines_is_not_written(tmp_path: Path) -> None:
    models.write_model(tmp_path / "theirs", CASES["encoder"])
    path = tmp_path / "theirs" / "tokenizer.json"
    fields = json.loads(path.read_text())
    [last] = [token for token, number in fields["model"]["vocab"].items() if number == 18]
    fields["model"]["vocab"]["a\nb"] = fields["model"]["vocab"].pop(last)
    path.write_text(json.dumps(fields))
    message = r"token 'a\\nb' has a line break, which vocab.txt cannot hold"
    with pytest.raises(UserError, match=message):
        main(["to-hf", str(tmp_path / "theirs"), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_what_was_added_to_the_encoder_is_not_dropped(classifier: Path) -> None:
    model = load(classifier)
    params = dict(model.params) | {"adapter": {"kernel": np.ones((2, 2), np.float32)}}
    with pytest.raises(UserError, match=r"the model has adapter/kernel, for which transformers'"):
        to_tensors(params, model.description)
