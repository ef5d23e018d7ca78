"""The prepare command: what it makes, what it says, and what it leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bert_jax import prepare
from bert_jax.data import documentation_corpus, preparation, tfds_text
from bert_jax.data.corpus import open_corpus
from bert_jax.data.documentation import Documentation
from bert_jax.data.documentation_corpus import ensure_docs_corpus
from bert_jax.data.documents import Tally
from bert_jax.data.stages import Progress
from bert_jax.data.tfds_text import TfdsText
from bert_jax.data.tokenizer import SPECIAL_TOKENS
from bert_jax.errors import UserError

ROOT = Path(prepare.__file__).parents[1]
TEXT = "The cat sat on the mat. It saw a dog!\n\nThe dog ran to the green tree. Why?\n\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 3 + "One more document. It has two sentences.")
    return path


def options(text, output, *more):
    few = ("--vocab_size", "100", "--max_length", "16", "--workers", "0")
    return ["--input", str(text), "--output", str(output), *few, *more]


def test_text_becomes_a_corpus(text, tmp_path, capsys):
    output = tmp_path / "deep" / "corpus"
    prepare.main(options(text, output, "--documents", "blank_line"))
    printed = capsys.readouterr()
    corpus = open_corpus(output)
    assert f"configs/pretrain.py:base,corpus={output}" in printed.out
    assert "python -m bert_jax.train" in printed.out.splitlines()[-1]
    assert "tokens a byte" in printed.out
    assert "tokenising" in printed.err
    assert corpus.sources[0]["documents"] == corpus.metadata["sources"][0]["documents"] == 7
    assert os.listdir(output.parent) == ["corpus"]
    assert os.listdir(output) == ["bert_corpus"]


def test_several_inputs_share_one_numbering(text, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"body": "The dog ran."}\n{"body": "A cat sat."}\n')
    again = f"{tmp_path}/*.txt"
    more = ["--input", str(tmp_path / "b.jsonl"), again, "--text_field", "body"]
    prepare.main(options(text, tmp_path / "c", *more, "--validation_share", "0"))
    corpus = open_corpus(tmp_path / "c")
    assert [source["documents"] for source in corpus.sources] == [1, 2, 0]
    assert corpus.counts.keys() == {"train"}
    assert set(corpus.split("train").documents.tolist()) == {0, 1, 2}


def test_an_existing_vocabulary(text, tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL_TOKENS, "The", "the", "cat"]))
    prepare.main(options(text, tmp_path / "c", "--vocabulary", str(vocabulary), "--cased"))
    first = open_corpus(tmp_path / "c")
    assert first.tokenizer.size == 8
    assert not first.tokenizer.lowercase
    prepare.main(options(text, tmp_path / "d", "--vocabulary", str(tmp_path / "c")))
    assert open_corpus(tmp_path / "d").fingerprint == first.fingerprint


def test_case_of_a_trained_vocabulary(text, tmp_path):
    prepare.main(options(text, tmp_path / "c", "--cased"))
    assert not open_corpus(tmp_path / "c").tokenizer.lowercase
    prepare.main(options(text, tmp_path / "d"))
    assert open_corpus(tmp_path / "d").tokenizer.lowercase


def test_the_documents_that_a_vocabulary_is_learnt_from_can_be_few(tmp_path):
    lines = [json.dumps({"text": f"word{i % 26 + 97:c} " * 50}) for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    few = ["--vocabulary_megabytes", "0.003"]
    prepare.main(options(tmp_path / "a.jsonl", tmp_path / "c", *few))
    words = [w for w in open_corpus(tmp_path / "c").tokenizer.vocabulary if w.startswith("word")]
    assert 1 <= len([word for word in words if len(word) == 5]) <= 10


def test_input_that_is_not_utf8_can_be_skipped(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"The cat sat.\nThe d\xf6g.\nIt ran.\n")
    with pytest.raises(UserError, match="byte 0xf6 at offset 18"):
        prepare.main(options(tmp_path / "a.txt", tmp_path / "c"))
    assert sorted(os.listdir(tmp_path)) == ["a.txt"], "nothing half-made stays"
    prepare.main(options(tmp_path / "a.txt", tmp_path / "c", "--bad_input", "skip"))
    assert open_corpus(tmp_path / "c").metadata["skipped"] == 1
    assert "skipped 1" in capsys.readouterr().out


def test_one_document_draws_a_warning(text, tmp_path, capsys):
    prepare.main(options(text, tmp_path / "c"))
    assert "warning: the corpus is one document" in capsys.readouterr().out


def test_documents_of_one_sentence_draw_a_warning(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("The cat sat.\n\nA dog ran.\n\nIt sat. It ran.")
    prepare.main(options(tmp_path / "a.txt", tmp_path / "c", "--documents", "blank_line"))
    assert "warning: 2 of 3 documents have one sentence only" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_length", "3"], "--max_length 3 is out of range"),
        (["--validation_share", "1"], "--validation_share 1.0 is no share"),
        (["--vocabulary", "missing.txt"], "The vocabulary missing.txt cannot be read"),
        (["--vocab_size", "5"], "has no room"),
        (["--workers", "-1"], "--workers -1"),
        (["--vocabulary_megabytes", "0"], "--vocabulary_megabytes 0"),
        (["--vocabulary_megabytes", "inf"], "--vocabulary_megabytes inf is no size"),
        (["--input", "nothing/*.txt"], "No file matches --input 'nothing/"),
        (["--input", "tfds:no_such_data_set"], "TFDS has no data set 'no_such_data_set'"),
        (["--max_lenght", "8"], "did you mean --max_length"),
    ],
)
def test_wrong_options_get_a_sentence(text, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        prepare.main(options(text, tmp_path / "c", *more))
    assert sorted(os.listdir(tmp_path)) == ["text.txt"]


def test_input_without_text(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(UserError, match="There is no text"):
        prepare.main(options(tmp_path / "a.txt", tmp_path / "c"))
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(SPECIAL_TOKENS))
    with pytest.raises(UserError, match="holds no text to learn from"):
        prepare.main(options(tmp_path / "a.txt", tmp_path / "c", "--vocabulary", str(vocabulary)))


def test_a_standing_output_is_kept_unless_told_otherwise(text, tmp_path):
    output = tmp_path / "c"
    output.mkdir()
    prepare.main(options(text, output))
    before = open_corpus(output).fingerprint
    text.write_text("Other text. It is short.")
    with pytest.raises(UserError, match="give --overwrite to replace it"):
        prepare.main(options(text, output))
    assert open_corpus(output).fingerprint == before
    prepare.main(options(text, output, "--overwrite"))
    assert open_corpus(output).fingerprint != before
    assert sorted(os.listdir(tmp_path)) == ["c", "text.txt"]
    (output / "mine.txt").write_text("not ours to delete")
    for kept in (output, tmp_path):
        with pytest.raises(UserError, match="holds something besides a corpus"):
            prepare.main(options(text, kept, "--overwrite"))


def test_what_others_write_meanwhile_is_kept(text, tmp_path, monkeypatch):
    others = tmp_path / "others"
    prepare.main(options(text, others))
    write = preparation._write

    def write_while(make):
        def write_and_make(*arguments):
            write(*arguments)
            make()

        monkeypatch.setattr(preparation, "_write", write_and_make)

    output = tmp_path / "c"
    write_while(lambda: shutil.copytree(others, output))
    text.write_text("Other text. It is short.")
    with pytest.raises(UserError, match="c has got a corpus meanwhile, so that the new one is in"):
        prepare.main(options(text, output))
    assert open_corpus(output).fingerprint == open_corpus(others).fingerprint
    [kept] = tmp_path.glob("c-*")
    write_while(lambda: (output / "notes.txt").write_text("precious"))
    prepare.main(options(text, output, "--overwrite"))
    assert (output / "notes.txt").read_text() == "precious"
    assert open_corpus(output).fingerprint == open_corpus(kept).fingerprint
    assert sorted(os.listdir(output)) == ["bert_corpus", "notes.txt"]
    assert sorted(os.listdir(tmp_path)) == ["c", kept.name, "others", "text.txt"]


def test_a_corpus_that_a_killed_program_moved_away_is_put_back(text, tmp_path):
    output = tmp_path / "c"
    prepare.main(options(text, output))
    before = open_corpus(output).fingerprint
    away = output / ".incomplete-12345678"
    away.mkdir()
    (output / "bert_corpus").rename(away / "old")
    with pytest.raises(UserError, match="holds a corpus; give --overwrite"):
        prepare.main(options(text, output))
    assert open_corpus(output).fingerprint == before


def test_a_disk_that_fills_while_records_are_written(text, tmp_path, monkeypatch):
    def write(*_):
        raise RuntimeError("write() failed: No space left on device; writing here; at byte 294912")

    monkeypatch.setattr(tfds.core.ExampleWriter, "write", write)
    with pytest.raises(UserError, match="cannot be written .No space left on device.; free some"):
        prepare.main(options(text, tmp_path / "c"))
    assert os.listdir(tmp_path) == ["text.txt"]


def test_what_a_link_leads_to_is_the_output(text, tmp_path, monkeypatch, capsys):
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    link.symlink_to(disk)
    prepare.main(options(text, link))
    assert link.is_symlink() and open_corpus(link).fingerprint == open_corpus(disk).fingerprint
    prepare.main(options(text, link, "--overwrite"))
    assert sorted(os.listdir(tmp_path)) == ["disk", "link", "text.txt"]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    capsys.readouterr()
    prepare.main(options(text, "."))
    assert "wrote .; next:" in capsys.readouterr().out  # as it was typed
    assert open_corpus(here).fingerprint == open_corpus(disk).fingerprint
    # What a program that was killed left is in nobody's way; the directory itself stays the same.
    (here / ".incomplete-12345678").mkdir()
    number = here.stat().st_ino
    with pytest.raises(UserError, match="give --overwrite"):
        prepare.main(options(text, here))
    prepare.main(options(text, here, "--overwrite"))
    assert sorted(os.listdir(here)) == [".incomplete-12345678", "bert_corpus"]
    assert here.stat().st_ino == number


@pytest.mark.parametrize(
    ("number", "more"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, []),
        (signal.SIGTERM, ["--beam_runner", "DirectRunner"]),
        (signal.SIGKILL, []),
    ],
)
def test_an_interrupted_command_leaves_no_corpus(tmp_path, number, more):
    if more:
        pytest.importorskip("apache_beam")
    pipe = tmp_path / "never_ending.txt"
    os.mkfifo(pipe)
    # Of tests that a shell started in the background, children inherit that SIGINT is ignored.
    catchable = number if number != signal.SIGKILL else signal.SIGINT
    before = signal.signal(catchable, signal.SIG_DFL)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bert_jax.prepare",
            *options(pipe, tmp_path / "c", "--workers", "1", *more),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(catchable, before)
    with process, pipe.open("w"):  # opens when the command has begun to read
        process.send_signal(number)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    if number == signal.SIGKILL:
        assert process.returncode == -number
        (left,) = {*os.listdir(tmp_path)} - {"never_ending.txt"}
        for directory in ("c", left):
            with pytest.raises(UserError, match="no corpus|no whole corpus"):
                open_corpus(tmp_path / directory)
        return
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["never_ending.txt"]


class TinyText(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set to read."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"title": text, "body": text, "n": np.int64}),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(4), "extra": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"title": f"Title {i}", "body": f"The cät sat {i}. It ran.", "n": i}


def test_tfds_data_sets(tmp_path):
    name = ["--input", "tfds:tiny_text", "--data_dir", str(tmp_path / "tfds")]
    rest = [*options("", tmp_path / "c")[2:], "--text_field", "body"]
    prepare.main([*name, *rest])
    corpus = open_corpus(tmp_path / "c")
    assert corpus.sources[0]["documents"] == 4
    assert corpus.sources[0]["text_bytes"] == 4 * len("The cät sat 0. It ran.".encode())
    prepare.main([*name, *rest, "--overwrite", "--tfds_split", "extra"])
    assert open_corpus(tmp_path / "c").sources[0]["documents"] == 2
    with pytest.raises(UserError, match="choose one of train, extra"):
        prepare.main([*name, *rest, "--overwrite", "--tfds_split", "missing"])
    with pytest.raises(
        UserError, match=r"no text feature .text.; name one of (body, title|title, body) with"
    ):
        prepare.main([*name, *rest[:-2], "--overwrite"])


def test_rows_of_tfds_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_text, "_ROWS_OF_PART", 3)
    whole = TfdsText("tfds:tiny_text", text_field="body", data_dir=str(tmp_path / "tfds"))
    parts = whole.parts()
    assert [part.rows for part in parts] == [(0, 3), (3, 4)]
    apart = [passage for part in parts for passage in part.passages(Tally())]
    assert apart == list(whole.passages(Tally()))
    pytest.importorskip("apache_beam")
    more = ["--data_dir", whole.data_dir, "--text_field", "body"]
    beam = [*more, "--beam_runner", "DirectRunner"]
    prepare.main(options("tfds:tiny_text", tmp_path / "c", *more))
    prepare.main(options("tfds:tiny_text", tmp_path / "d", *beam))
    fingerprints = {open_corpus(tmp_path / name).fingerprint for name in "cd"}
    assert len(fingerprints) == 1


def test_a_tfds_data_set_that_cannot_be_fetched(tmp_path, monkeypatch):
    def fail(builder, **keywords):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(TinyText, "download_and_prepare", fail)
    name = ["--input", "tfds:tiny_text", "--data_dir", str(tmp_path / "tfds")]
    with pytest.raises(UserError, match=r"cannot fetch .*ConnectionError: no route to host\)"):
        prepare.main([*name, *options("", tmp_path / "c")[2:]])


@pytest.mark.parametrize("name", ["wikipedia/20230601.en", "imdb_reviews", "wiki40b/en"])
def test_the_text_data_sets_of_tfds_are_known(tmp_path, monkeypatch, name):
    def fail(builder, **keywords):
        raise ConnectionError(f"would fetch {builder.info.full_name}")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    source = TfdsText(f"tfds:{name}", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=f"would fetch {name}"):
        next(source.passages(Tally()))


def test_the_built_in_corpus_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def fake_run(command, **keywords):
        calls.append(command)
        output = command[command.index("--output") + 1]
        (tmp_path / "a.txt").write_text(TEXT)
        prepare.main(options(tmp_path / "a.txt", output))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(documentation_corpus.subprocess, "run", fake_run)
    small = {"vocabulary_size": 100, "max_length": 16}
    first = ensure_docs_corpus(**small, lowercase=True)
    assert first.parent == tmp_path / "bert_jax"
    assert ensure_docs_corpus(**small, lowercase=True) == first
    assert len(calls) == 1
    assert "--uncased" in calls[0]
    assert ensure_docs_corpus(**small, lowercase=False) != first
    assert len(calls) == 2


def test_the_built_in_corpus_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be prepared \(exit code 2"):
        ensure_docs_corpus(vocabulary_size=3, max_length=16, lowercase=True, workers=-1)


def test_documentation_is_an_input(tmp_path, monkeypatch):
    documents = ["One module. It has sentences.", "Another module. It has some too."]
    monkeypatch.setattr(Documentation, "_documents", documents)
    prepare.main(options("docs", tmp_path / "c"))
    assert open_corpus(tmp_path / "c").sources[0]["documents"] == 2


def test_progress_has_speed_and_time_left():
    text = prepare.progress_text(Progress("tokenising", 10_000_000, 0.25, 5.0))
    assert text == "tokenising, 10.0 MB, 2.0 MB/s, 25%, 15 s left"
    assert prepare.progress_text(Progress("learning", 0, None, 0.0)) == "learning"


def test_errors_from_the_shell(tmp_path):
    command = [sys.executable, "-m", "bert_jax.prepare"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    missing = [*command, "--input", "missing.txt", "--output", str(tmp_path / "c")]
    finished = subprocess.run(missing, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr == "error: No file matches --input 'missing.txt'; check the path\n"
