"""The commands: what they write, what they say, and what they leave behind when they cannot."""

import dataclasses
import json
import os
import pickle
import signal
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import hugging_face_models as models
import numpy as np
import pytest
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from hugging_face_models import CASES
from random_params import random_params

from bert_jax import predict
from bert_jax.command_line import run
from bert_jax.convert import main
from bert_jax.errors import UserError
from bert_jax.formats.adapter_file import base_fingerprint, save_adapter
from bert_jax.models.description import Head, ModelDescription
from bert_jax.pretrained import load
from bert_jax.training.checkpoints import Checkpoints


def test_a_workdir_says_what_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.write_model(tmp_path / "theirs", CASES["pretraining"])
    edit_config(tmp_path / "theirs", classifier_dropout=0.5)
    out = tmp_path / "nested" / "work"
    assert main(["from-hf", str(tmp_path / "theirs"), str(out)]) == 0
    note = (
        "classifier_dropout=0.5 was not used: heads drop hidden_dropout_prob=0.1 here; it matters "
        "to further training only"
    )
    assert capsys.readouterr().out == f"note: {note}\nwrote {out}\n"
    assert json.loads((out / "config.json").read_text())["source"] == "theirs"
    with Checkpoints(out, read_only=True) as checkpoints:
        record = checkpoints.record(0)
    assert record.notes == [note]
    assert record.identity == {"vocabulary": load(out).tokenizer.hash}
    assert [path.name for path in out.parent.iterdir()] == ["work"]

    assert main(["to-hf", str(out), str(tmp_path / "back")]) == 0
    assert "note: for the fill-mask pipeline, --head mlm" in capsys.readouterr().out
    card = (tmp_path / "back" / "README.md").read_text()
    assert "| source | theirs |" in card
    assert note in card


def test_a_program_that_is_terminated_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.write_model(tmp_path / "theirs", CASES["pretraining"])
    monkeypatch.setattr(Checkpoints, "save", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run(lambda: main(["from-hf", str(tmp_path / "theirs"), str(tmp_path / "out")]))
    assert ended.value.code == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == ["theirs"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_heads_may_be_left_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.write_model(tmp_path / "theirs", CASES["pretraining"])
    source = str(tmp_path / "theirs")
    main(["to-hf", source, str(tmp_path / "mlm"), "--head", "mlm"])
    main(["to-hf", source, str(tmp_path / "none"), "--head", "none"])
    main(["to-hf", str(tmp_path / "mlm"), str(tmp_path / "bare"), "--head", "none"])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == 1 and "add_pooling_layer=False" in notes[0]
    architectures = {
        name: json.loads((tmp_path / name / "config.json").read_text())["architectures"]
        for name in ("mlm", "none", "bare")
    }
    assert architectures == {
        "mlm": ["BertForMaskedLM"],
        "none": ["BertModel"],
        "bare": ["BertModel"],
    }
    for name, settings in (("none", {}), ("bare", {"add_pooling_layer": False})):
        model, info = transformers.AutoModel.from_pretrained(
            tmp_path / name, output_loading_info=True, **settings
        )
        assert not any(info.values())
        assert (model.pooler is None) == bool(settings)
    for arguments, message in (
        (["--head", "mlm", "--pooling", "mean"], "give --head mlm or --pooling"),
        (["--head", "both"], "invalid choice: 'both'"),
    ):
        with pytest.raises(UserError, match=message):
            main(["to-hf", source, str(tmp_path / "out"), *arguments])
    with pytest.raises(UserError, match="has no masked-language-model head"):
        main(["to-hf", str(tmp_path / "bare"), str(tmp_path / "out"), "--head", "mlm"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adaptation", [{"lora_rank": 2}, {"adapter_width": 4}], ids=str)
def test_an_adapter_answers_on_its_base_and_lora_is_exported(
    tmp_path: Path, adaptation: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    models.write_model(tmp_path / "base", CASES["pretraining"])
    base = load(tmp_path / "base")
    config = dataclasses.replace(base.config, **adaptation)
    description = ModelDescription(
        config, Head.CLASSIFICATION, ("bad", "good"), max_length=16, pairs=False
    )
    drawn = flatten_dict(random_params(description.initialise))
    kept = flatten_dict({"encoder": base.params["encoder"]})
    silent = {path: np.zeros_like(drawn[path]) for path in drawn if path[-1] == "lora_b"}
    fingerprint = base_fingerprint(base.params, base.config)
    for name, flat in (("adapter", drawn | kept), ("silent", drawn | kept | silent)):
        params = unflatten_dict(flat)
        save_adapter(tmp_path / f"{name}.safetensors", params, description, fingerprint)

    def classify(*model: str) -> list[float]:
        texts = ("a fine day", "no, thank you")
        assert predict.main(["classify", "--json", *texts, "--checkpoint", *model]) == 0
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        return [line["probabilities"]["good"] for line in lines]

    on_base = (str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter.safetensors"))
    expected = classify(*on_base)
    assert len(expected) == 2
    out = tmp_path / "exported"
    if "adapter_width" in adaptation:
        with pytest.raises(UserError, match="cannot be merged into the encoder"):
            main(["to-hf", on_base[0], str(out), *on_base[1:]])
        assert not out.exists()
        return
    without_lora = classify(*on_base[:2], str(tmp_path / "silent.safetensors"))
    assert without_lora != pytest.approx(expected, abs=1e-3)
    assert main(["to-hf", on_base[0], str(out), *on_base[1:]]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert classify(str(out)) == pytest.approx(expected, abs=1e-5)


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def plant_code(path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path.with_name("made")),)

    with zipfile.ZipFile(path.with_name("pytorch_model.bin"), "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"x": Runs()}))
    path.unlink()


def rename(path: Path) -> None:
    path.with_name("config.json").write_text('{"model_type": "distilbert"}')


@pytest.mark.parametrize(
    "spoil, message",
    [
        (truncate, "model.safetensors is damaged or incomplete"),
        (plant_code, "pytorch_model.bin would run posix.mkdir when it is loaded"),
        (rename, "theirs is a distilbert model; only BERT models can be converted"),
        (Path.unlink, "theirs has no weights that can be read"),
    ],
)
def test_what_cannot_be_read_leaves_nothing_behind(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    models.write_model(tmp_path / "theirs", CASES["encoder"])
    spoil(tmp_path / "theirs" / "model.safetensors")
    for command in ("from-hf", "to-hf", "to-onnx"):
        with pytest.raises(UserError, match=message):
            main([command, str(tmp_path / "theirs"), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    assert not (tmp_path / "theirs" / "made").exists()


def test_names_that_cannot_be_are_told(tmp_path: Path) -> None:
    source, out = str(tmp_path / "theirs"), str(tmp_path / "out")
    models.write_model(tmp_path / "theirs", CASES["encoder"])
    with pytest.raises(UserError, match=r"\\udcff' is no name in UTF-8; choose another"):
        main(["from-hf", source, f"{out}\udcff"])
    with pytest.raises(UserError, match="is a directory; name the checkpoint"):
        main(["from-tf", ".", out])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    models.write_model(tmp_path / "theirs", CASES["encoder"])
    (tmp_path / "out").mkdir()
    main(["from-hf", str(tmp_path / "theirs"), str(tmp_path / "out")])  # empty: may be taken
    for command in ("from-hf", "to-hf"):
        with pytest.raises(UserError, match="out exists already; remove it, or name another"):
            main([command, str(tmp_path / "theirs"), str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"absent/config\.json cannot be read"):
        main(["from-hf", str(tmp_path / "absent"), str(tmp_path / "out2")])


def test_other_programs_files_are_on_a_disk(tmp_path: Path, monkeypatch: Any) -> None:
    models.write_model(tmp_path / "theirs", CASES["encoder"])
    monkeypatch.chdir(tmp_path)
    for command, source, out in (
        ("to-hf", "theirs", "gs://bucket/out"),
        ("from-hf", "theirs", "gs://bucket/out"),
        ("from-hf", "gs://bucket/theirs", "out"),
    ):
        with pytest.raises(UserError, match="is in an object store, and other programs' files"):
            main([command, source, out])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=r"^\. is the directory that this runs in"):
        main(["to-hf", "../theirs", "."])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "theirs"]


def test_what_an_export_does_not_hold_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = CASES["encoder"]
    models.write_model(tmp_path / "theirs", model)
    theirs = tmp_path / "theirs"
    main(["to-hf", str(theirs), str(tmp_path / "sentences"), "--pooling", "cls", "--normalize"])
    main(["to-hf", str(tmp_path / "sentences"), str(tmp_path / "bare")])
    main(["to-onnx", str(tmp_path / "sentences"), str(tmp_path / "graph")])
    told = "note: how embeddings are made (pooling cls, normalized) is not written; to-hf --pooling"
    assert capsys.readouterr().out.count(told) == 2
    edit_config(theirs, architectures=["BertForSequenceClassification"])
    main(["to-hf", str(theirs), str(tmp_path / "out")])
    assert "note: classifier.bias was missing and was initialised" in capsys.readouterr().out
    assert predict.main(["classify", "--checkpoint", str(theirs), "the cat"]) == 0
    assert "note: classifier.bias was missing" in capsys.readouterr().err


def test_pairs_need_two_segments(tmp_path: Path) -> None:
    models.write_model(tmp_path, CASES["classification"], type_vocab_size=1)
    assert predict.main(["classify", "--checkpoint", str(tmp_path), "the cat"]) == 0
    with pytest.raises(UserError, match="the model has 1 segment, and pairs of texts need 2"):
        predict.main(["classify", "--checkpoint", str(tmp_path), "the cat\tthe dog"])


@pytest.mark.slow
def test_a_run_is_exported_and_an_import_is_gone_on_from(
    small_run: Callable[..., Sequence[str]],
    run_program: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, work = tmp_path / "run", tmp_path / "work"
    settings = ("--config.total_steps=3", "--config.second_phase.share=0")
    done = run_program("train", *small_run(run, *settings))
    assert done.returncode == 0, done.stderr
    main(["to-hf", str(run), str(tmp_path / "hf")])
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| steps | 3 |" in card
    assert "at step 3:" in card
    assert "| mlm_loss | " in card
    main(["to-hf", str(run), str(tmp_path / "bare"), "--head", "none"])
    assert "| mlm_loss | " not in (tmp_path / "bare" / "README.md").read_text()
    main(["from-hf", str(tmp_path / "hf"), str(work)])
    # A step's directory, whose run has the scores; and the command as it is typed.
    done = run_program("convert", "to-hf", f"{run}/checkpoints/3", str(tmp_path / "again"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"wrote {tmp_path / 'again'}")
    assert (tmp_path / "again" / "README.md").read_text() == card
    done = run_program("convert", "to-hf", str(run), str(work))
    assert done.returncode == 2
    assert done.stderr == f"error: {work} exists already; remove it, or name another directory\n"

    capsys.readouterr()
    answers = []
    for path in (run, work, tmp_path / "hf"):
        arguments = ["fill-mask", "--json", "--checkpoint", str(path), "a [MASK] here"]
        predict.main(arguments)
        answers.append(capsys.readouterr().out)
    assert '"fillings"' in answers[0]
    assert answers == answers[:1] * 3
    onward = small_run(tmp_path / "on", *settings, f"--config.init_from={work}")
    done = run_program("train", *onward)
    assert done.returncode == 0, done.stderr
