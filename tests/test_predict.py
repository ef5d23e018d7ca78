import dataclasses
import functools
import gzip
import io
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from random_params import random_params

from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.predict import COMMANDS, main
from bert_jax.pretrained import load
from bert_jax.training.assets import DESCRIPTION, model_assets
from bert_jax.training.checkpoints import Checkpoints, RunRecord
from bert_jax.training.state import TrainState

WORDS = ("red", "green", "blue", "cat", "dog", "cow", "one", "two")
TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, *WORDS], lowercase=True)
CONFIG = BertConfig(
    vocabulary_size=TOKENIZER.size,
    layers=1,
    width=16,
    heads=2,
    feed_forward_width=32,
    max_positions=40,
)
# Lengths of two paddings, and one text that is cut.
TEXTS = ["red cat", "one", "two dog " * 30, "", "blue blue cow", "cat dog " * 17, "green"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A workdir with random parameters, for a head."""
    made = {}

    def make(head):
        if head not in made:
            labels = ("bad", "good", "so-so")
            description = ModelDescription(CONFIG, head, labels, max_length=40)
            params = random_params(description.initialise)
            assets = model_assets(description, TOKENIZER)
            workdir = tmp_path_factory.mktemp(str(head))
            record = RunRecord(3, {"task": "test"}, {}, assets, {}, [])
            with Checkpoints(workdir) as checkpoints:
                checkpoints.save(TrainState(3, params, None), record)
            made[head] = str(workdir)
        return made[head]

    return make


@pytest.fixture
def predict(checkpoint, capsys):
    """The lines that a command prints; those of --json as objects."""

    def run(command, head, *arguments):
        assert main([command, "--checkpoint", checkpoint(head), *map(str, arguments)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [json.loads(line) for line in lines] if "--json" in arguments else lines

    return run


@pytest.fixture
def type_in(monkeypatch):
    """Sets standard input."""

    def type_bytes(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))

    return type_bytes


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, *inputs):
    return module.apply({"params": params}, *inputs, deterministic=True)


def _scores(checkpoint, head, first, second=None):
    """What the model gives for one text or pair by itself."""
    model = load(checkpoint(head))
    a, b = (TOKENIZER.encode_batch([text])[0] for text in (first, second or ""))
    a = [TOKENIZER.cls_id, *a[:38], TOKENIZER.sep_id]
    b = [*b, TOKENIZER.sep_id] if second is not None else []
    token_ids, segment_ids = np.zeros((2, 1, 40), np.int32)
    token_ids[0, : len(a + b)] = a + b
    segment_ids[0, len(a) : len(a + b)] = 1
    lengths = np.array([len(a + b)], np.int32)
    return np.asarray(_apply(model.model, model.params, token_ids, segment_ids, lengths))[0]


def _softmax(scores):
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def test_classes_come_in_the_order_of_a_file_of_any_length(predict, checkpoint, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\r\n" for text in TEXTS))
    found = predict("classify", Head.CLASSIFICATION, "--input", path, "--json", "--batch_size", 2)
    assert [row["text"] for row in found] == TEXTS
    for row, text in zip(found, TEXTS, strict=True):
        expected = _softmax(_scores(checkpoint, Head.CLASSIFICATION, text))
        np.testing.assert_allclose(list(row["probabilities"].values()), expected, atol=1e-4)
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
    assert np.ptp([row["probabilities"]["good"] for row in found]) > 0.01  # order matters


@pytest.mark.parametrize("form", ["arguments", "stdin", "tsv", "csv.gz", "jsonl"])
def test_pairs_are_given_in_many_ways(predict, checkpoint, tmp_path, type_in, form):
    pairs = [("red cat", "one, two"), ("two", "cow cow")]
    arguments = []
    if form == "arguments":
        arguments = ["\t".join(pair) for pair in pairs]
    elif form == "stdin":
        type_in("".join(f"{a}\t{b}\n" for a, b in pairs).encode())
    else:
        path = tmp_path / f"pairs.{form}"
        content = "".join(f"{json.dumps({'a': a, 'b': b})}\n" for a, b in pairs)
        if form == "tsv":
            content = "a\tb\n" + "".join(f"{a}\t{b}\n" for a, b in pairs)
        if form == "csv.gz":
            content = "a,b\n" + "".join(f'{a},"{b}"\n' for a, b in pairs)
        path.write_bytes(gzip.compress(content.encode()) if "gz" in form else content.encode())
        arguments = ["--input", path, "--text", "a", "--second_text", "b"]
    found = predict("regress", Head.REGRESSION, "--json", *arguments)
    assert [(row["text"], row["second_text"]) for row in found] == pairs
    for row, pair in zip(found, pairs, strict=True):
        expected = _scores(checkpoint, Head.REGRESSION, *pair)[0]
        assert row["prediction"] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("said_by", ["description", "config of an older version"])
@pytest.mark.parametrize("learnt", [False, True], ids=["single", "pairs"])
def test_a_model_answers_what_it_learnt(checkpoint, tmp_path, capsys, learnt, said_by):
    workdir = shutil.copytree(checkpoint(Head.CLASSIFICATION), tmp_path / "run")
    path = workdir / "checkpoints" / "3" / "run" / "metadata"
    record = json.loads(path.read_text())
    description = ModelDescription.from_json(record["assets"][DESCRIPTION])
    described = dataclasses.replace(description, pairs=learnt)
    if said_by == "description":
        record["assets"][DESCRIPTION] = described.to_json()
    else:
        record["config"]["data"] = {"second_text": "second" if learnt else ""}
    path.write_text(json.dumps(record))
    single, pair = "red cat", "red\tcat"
    right, wrong = (pair, single) if learnt else (single, pair)
    assert main(["classify", "--checkpoint", str(workdir), right]) == 0
    message = "trained on pairs, and text 1 is a single" if learnt else "single texts, and text 1"
    with pytest.raises(UserError, match=message):
        main(["classify", "--checkpoint", str(workdir), wrong])


def test_answers_need_somewhere_to_go(checkpoint, monkeypatch, tmp_path):
    arguments = ["regress", "--checkpoint", checkpoint(Head.REGRESSION), "red"]
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it under ``>&-``
    with pytest.raises(UserError, match="standard output is closed; give --output FILE"):
        main(arguments)
    assert main([*arguments, "--output", str(tmp_path / "answers")]) == 0
    assert (tmp_path / "answers").read_text().endswith("  red\n")


def test_readable_answers_of_each_kind(predict, checkpoint):
    [line] = predict("classify", Head.CLASSIFICATION, "red cat\tone")
    best = _scores(checkpoint, Head.CLASSIFICATION, "red cat", "one")
    name = ("bad", "good", "so-so")[best.argmax()]
    assert line == f"{name:5}  {_softmax(best).max():6.1%}  red cat | one"
    scores = _scores(checkpoint, Head.MULTI_LABEL, "two")
    labels = [
        label for label, score in zip(("bad", "good", "so-so"), scores, strict=True) if score > 0
    ]
    assert predict("classify", Head.MULTI_LABEL, "two") == [f"{', '.join(labels) or '-'}  two"]
    assert predict("classify", Head.MULTI_LABEL, "two", "--threshold", 1) == ["-  two"]
    value = _scores(checkpoint, Head.REGRESSION, "two")[0]
    assert predict("regress", Head.REGRESSION, "two") == [f"{value:10.4f}  two"]


def test_choices_may_differ_in_number(predict, checkpoint, tmp_path):
    rows = [("red", ["cat", "dog dog", "one"]), ("blue cow", ["two", "green"])]
    found = predict(
        "choose", Head.CHOICE, "--json", *("\t".join([a, *choices]) for a, choices in rows)
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps({'text': a, 'choices': c})}\n" for a, c in rows))
    assert predict("choose", Head.CHOICE, "--json", "--input", path) == found
    for row, (context, choices) in zip(found, rows, strict=True):
        scores = np.array([_scores(checkpoint, Head.CHOICE, context, c)[0] for c in choices])
        np.testing.assert_allclose(row["probabilities"], _softmax(scores), atol=1e-4)
        assert row["prediction"] == scores.argmax()
    readable = predict("choose", Head.CHOICE, "red\tcat\tdog dog\tone")
    best = found[0]["prediction"]
    assert readable[0].startswith(f"{best}  ") and readable[0].endswith(rows[0][1][best])


def test_questions_and_columns_of_choices(predict, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("q\tx\ty\none\tcat\tdog\n")
    columns = ["--input", path, "--text", "", "--question", "q", "--choices", "x, y"]
    [row] = predict("choose", Head.CHOICE, "--json", *columns)
    assert (row["question"], row["choices"]) == ("one", ["cat", "dog"])
    [same] = predict("choose", Head.CHOICE, "--json", "one\tcat\tdog")
    assert row["probabilities"] == same["probabilities"]


def test_embeddings_are_the_model_s_in_every_form(predict, checkpoint, tmp_path):
    model = load(checkpoint(Head.NONE))
    expected = model.encode(TEXTS)
    assert expected.shape == (len(TEXTS), 16)
    for text, vector in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(model.encode([text])[0], vector, atol=1e-4)
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    found = predict("embed", Head.NONE, "--json", "--input", source)
    np.testing.assert_allclose([row["embedding"] for row in found], expected, atol=1e-4)
    lines = predict("embed", Head.NONE, "--input", source)
    numbers = [[float(number) for number in line.split()] for line in lines]
    np.testing.assert_allclose(numbers, expected, atol=1e-4)
    target = tmp_path / "vectors.npy"
    assert predict("embed", Head.NONE, "--input", source, "--output", target) == []
    np.testing.assert_allclose(np.load(target), expected, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl", "vectors.npy"]
    assert model.encode([]).shape == (0, 16)


def test_the_type_of_products_can_be_chosen(predict, checkpoint):
    texts = TEXTS[:3]
    exact = load(checkpoint(Head.NONE)).encode(texts)
    flags = ("--json", "--compute_dtype")
    rounded, same = (
        [row["embedding"] for row in predict("embed", Head.NONE, *flags, dtype, *texts)]
        for dtype in ("bfloat16", "float32")
    )
    np.testing.assert_allclose(same, exact, atol=1e-6)
    # Eight bits of mantissa are left.
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert np.abs(np.subtract(rounded, exact)).max() > 1e-4


def test_any_model_gives_embeddings(predict):
    assert len(predict("embed", Head.CLASSIFICATION, "red", "blue")) == 2


def test_the_nearest_texts_of_a_file(predict, checkpoint, tmp_path):
    among = tmp_path / "among.txt"
    among.write_text("".join(f"{text}\n" for text in [*TEXTS, "red cat"]))
    arguments = ["--among", among, "--top", 3]
    found = predict("similar", Head.NONE, "red cat", "cow", "--json", *arguments)
    vectors = load(checkpoint(Head.NONE)).encode(["red cat", "cow", *TEXTS, "red cat"])
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    for row, query in zip(found, vectors[:2], strict=True):
        cosines = vectors[2:] @ query
        best = np.sort(cosines)[::-1][:3]
        np.testing.assert_allclose([text["cosine"] for text in row["similar"]], best, atol=1e-4)
    places = [text["place"] for text in found[0]["similar"][:2]]
    assert places == [f"{among}, line 1", f"{among}, line 8"]
    lines = predict("similar", Head.NONE, "cow", *arguments)
    assert lines[0] == "cow"
    assert lines[1].endswith(found[1]["similar"][0]["text"])
    assert len(predict("similar", Head.NONE, "cow", "--among", among, "--top", 99)) == 9


def test_masks_are_filled_from_files_too(predict, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("red [MASK]\n[MASK] and [MASK]\n")
    arguments = ["--input", path, "--top", 2, "--json"]
    found = predict("fill-mask", Head.PRETRAINING, *arguments)
    assert [len(row["fillings"]) for row in found] == [1, 2]
    assert all(len(filling["tokens"]) == 2 for row in found for filling in row["fillings"])


def test_an_answer_is_written_whole_or_not_at_all(predict, tmp_path, type_in):
    target = tmp_path / "answers.jsonl"
    target.write_text("old\n")
    type_in(b"red\nblue\tcow\n")
    with pytest.raises(UserError, match="standard input, line 2 is a pair, unlike"):
        predict("classify", Head.CLASSIFICATION, "--json", "--output", target)
    assert target.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [target]
    type_in("red\nblue\u2028cow\n".encode())  # only line feeds end lines
    predict("classify", Head.CLASSIFICATION, "--output", target)
    assert target.read_text().count("\n") == 2


@pytest.mark.parametrize(
    "command, head",
    [
        ("fill-mask", Head.CLASSIFICATION),
        ("classify", Head.REGRESSION),
        ("regress", Head.MULTI_LABEL),
        ("choose", Head.REGRESSION),
        ("answer", Head.TAGGING),
        ("tag", Head.QUESTION_ANSWERING),
    ],
)
def test_a_model_of_another_head_is_refused(predict, command, head):
    with pytest.raises(UserError, match=f"is a model for {head}, and {command} needs one for"):
        predict(command, head, "red")


@pytest.mark.parametrize(
    "command, head, arguments, message",
    [
        ("classify", Head.CLASSIFICATION, ["red", "--input", "x"], "texts and an --input"),
        ("classify", Head.CLASSIFICATION, ["a\tb\tc"], "text 1 has several tabs"),
        ("classify", Head.CLASSIFICATION, ["red", "--batch_size", 0], "batch_size is 0"),
        ("classify", Head.MULTI_LABEL, ["red", "--threshold", 2], "--threshold 2.0 is no prob"),
        ("classify", Head.CLASSIFICATION, ["--input", "none.txt"], "none.txt cannot be read"),
        ("classify", Head.CLASSIFICATION, ["red", "--output", "no/x"], "no/x cannot be written"),
        ("choose", Head.CHOICE, ["red\tcat"], "text 1 has no two texts to choose from"),
        ("embed", Head.NONE, ["red", "--json", "--output", "x.npy"], "contradict"),
        ("similar", Head.NONE, ["red", "--among", "x", "--top", 0], "--top 0 must be"),
        ("fill-mask", Head.PRETRAINING, ["red [MASK]", "--top", 0], "--top 0 must be"),
        ("fill-mask", Head.PRETRAINING, ["red [MASK]", ""], "^text 2: '' has no \\[MASK\\]"),
        ("embed", Head.NONE, ["red", "x\udcff"], "text 2 is not UTF-8"),
    ],
)
def test_mistakes_are_told_in_one_sentence(predict, command, head, arguments, message):
    with pytest.raises(UserError, match=message):
        predict(command, head, *arguments)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"texts": "red"}', "line 1 has no column 'text'; name one of texts with --text"),
        ('{"text": "red"}\n{"text": 3}', "line 2 has 3 in the column 'text'"),
        ('{"text": "red"', "line 1 is not JSON"),
    ],
)
def test_rows_that_do_not_fit_are_told_with_their_place(predict, tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        predict("embed", Head.NONE, "--input", path)


def test_standard_input_that_is_not_utf_8_is_told(predict, type_in):
    type_in(b"red\n\xff\n")
    with pytest.raises(UserError, match="standard input is not UTF-8: byte 0xff at offset 4"):
        predict("embed", Head.NONE)


def test_a_closed_standard_input_is_told(predict, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed; give --input FILE"):
        predict("embed", Head.NONE)


def test_no_texts_give_no_answers(predict, type_in, tmp_path):
    type_in(b"")
    assert predict("embed", Head.NONE) == []
    empty = tmp_path / "empty.npy"
    type_in(b"")
    predict("embed", Head.NONE, "--output", empty)
    assert np.load(empty).shape == (0, 16)


def test_every_command_explains_itself(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command.name, "--help"])
        assert command.explanation.split(";")[0] in " ".join(capsys.readouterr().out.split())
