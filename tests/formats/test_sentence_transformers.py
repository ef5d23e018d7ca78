"""How embeddings are made is read from the files of ``sentence-transformers``, old and new."""

import json
import shutil
from pathlib import Path
from typing import Any

import hugging_face_models as models
import pytest
from hugging_face_models import CASES

from bert_jax.convert import main
from bert_jax.errors import UserError
from bert_jax.formats.sentence_transformers import read_layout
from bert_jax.models.description import Head, Pooling
from bert_jax.pretrained import load


def write(directory: Path, modules: dict[str, str], pooling: Any, length: int | None) -> Path:
    """Writes the layout: paths by the modules' types."""
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": name}
        for i, (name, path) in enumerate(modules.items())
    ]
    (directory / "modules.json").write_text(json.dumps(entries))
    for path in modules.values():
        (directory / path).mkdir(exist_ok=True)
    pooling_path = next(path for name, path in modules.items() if name.endswith("Pooling"))
    (directory / pooling_path / "config.json").write_text(json.dumps(pooling))
    if length:
        transformer = next(iter(modules.values()))
        text = json.dumps({"max_seq_length": length})
        (directory / transformer / "sentence_bert_config.json").write_text(text)
    return directory


MODULES = {
    "sentence_transformers.models.Transformer": "",
    "sentence_transformers.models.Pooling": "1_Pooling",
}
MEAN = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def test_a_directory_without_the_files_has_no_layout(tmp_path: Path) -> None:
    assert read_layout(tmp_path) is None


@pytest.mark.parametrize(
    "pooling, wanted",
    [
        (MEAN, Pooling.MEAN),
        (CLS, Pooling.CLS),
        ({"embedding_dimension": 24, "pooling_mode": "mean"}, Pooling.MEAN),
        ({"pooling_mode": "cls"}, Pooling.CLS),
    ],
)
def test_the_layout_is_read(pooling: Any, wanted: Pooling, tmp_path: Path) -> None:
    layout = read_layout(write(tmp_path, MODULES, pooling, 17))
    assert layout == (tmp_path, wanted, False, 17, False)
    renamed = {
        "sentence_transformers.base.modules.transformer.Transformer": "0_Transformer",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling": "1_Pooling",
        "sentence_transformers.sentence_transformer.modules.normalize.Normalize": "2_Normalize",
    }
    layout = read_layout(write(tmp_path, renamed, pooling, None))
    assert layout == (tmp_path / "0_Transformer", wanted, True, None, False)


@pytest.mark.parametrize(
    "modules, pooling, message",
    [
        (
            MODULES,
            {"pooling_mode_max_tokens": True},
            "asks for the pooling pooling_mode_max_tokens",
        ),
        (MODULES, CLS | MEAN, "asks for the pooling pooling_mode_cls_token, pooling_mode_mean"),
        (MODULES, {}, "asks for the pooling"),
        (MODULES | {"sentence_transformers.models.Dense": "2_Dense"}, MEAN, "modules .*, Dense"),
    ],
)
def test_other_embeddings_are_refused(
    modules: dict[str, str], pooling: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_layout(write(tmp_path, modules, pooling, None))


def test_lower_casing_that_the_tokenizer_does_not_do_is_refused(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["encoder"])
    write(tmp_path, MODULES, MEAN, None)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    settings = tmp_path / "tokenizer_config.json"
    fields = json.loads(settings.read_text())
    settings.write_text(json.dumps(fields | {"do_lower_case": False, "strip_accents": None}))
    with pytest.raises(UserError, match="do_lower_case=true for sentence-transformers"):
        load(tmp_path)
    settings.write_text(json.dumps(fields | {"do_lower_case": True, "strip_accents": None}))
    assert load(tmp_path).description.pooling is Pooling.MEAN


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config_sentence_transformers.json", '{"truncate_dim": 64}', "truncate_dim=64"),
        (
            "config_sentence_transformers.json",
            '{"prompts": {"query": "query: "}, "default_prompt_name": "query"}',
            "default_prompt_name='query'",
        ),
        (
            "config_sentence_transformers.json",
            '{"prompts": ["query: "], "default_prompt_name": ["query"]}',
            r"default_prompt_name=\['query'\]",
        ),
        ("sentence_bert_config.json", '{"max_seq_length": "128"}', "max_seq_length='128'"),
    ],
)
def test_settings_that_change_embeddings_are_refused(
    file: str, content: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path, MODULES, MEAN, None)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        read_layout(tmp_path)
    # What asks for nothing is what sentence-transformers writes by itself.
    nothing = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(nothing))
    (tmp_path / "sentence_bert_config.json").unlink(missing_ok=True)
    assert read_layout(tmp_path) is not None


@pytest.mark.parametrize("content", ["{}", "[3]", '[{"type": "Pooling"}]', "3"])
def test_damaged_modules_are_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(UserError, match=r"modules\.json (lists no modules|has the modules)"):
        read_layout(tmp_path)


@pytest.mark.parametrize("pooling", Pooling)
def test_there_and_back(pooling: Pooling, tmp_path: Path) -> None:
    models.write_model(tmp_path / "theirs", CASES["classification"])
    arguments = ["to-hf", str(tmp_path / "theirs"), str(tmp_path / "out"), "--normalize"]
    main([*arguments, "--pooling", pooling.value])
    description = load(tmp_path / "out").description
    assert (description.head, description.pooling) == (Head.NONE, pooling)
    assert description.normalize
    assert description.max_length == 20
    with pytest.raises(UserError, match="out exists already"):
        main([*arguments, "--pooling", pooling.value])
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match="give --pooling too"):
        main(arguments)


def test_without_a_pooler_none_is_asked_for(tmp_path: Path) -> None:
    models.write_model(tmp_path / "theirs", CASES["masked"])
    main(["to-hf", str(tmp_path / "theirs"), str(tmp_path / "out"), "--pooling", "mean"])
    assert not (tmp_path / "out" / "2_Normalize").exists()
    fields = json.loads((tmp_path / "out" / "sentence_bert_config.json").read_text())
    assert fields["model_args"] == {"add_pooling_layer": False}
