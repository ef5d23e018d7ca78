"""Questions from files, and the windows that hold their answers."""

import json
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.question_windows import make_windows
from bert_jax.data.questions import Question, read_questions
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError

CONTEXT = "The cat sat. The cat ran to Bö, and the dog sat."
QUESTIONS = [
    Question("a", CONTEXT, "Who sat?", ("The cat", "dog"), (0, 40), "t"),
    Question("b", CONTEXT, "Where?", ("Bö",), (28,), "t"),
    Question("c", CONTEXT, "Why?", title="t"),
]


def squad(questions, **more):
    """The questions, all on one context, in SQuAD's format."""
    qas = [
        {
            "id": question.id,
            "question": question.question,
            "answers": [
                {"text": text, "answer_start": start}
                for text, start in zip(question.answers, question.answer_starts, strict=True)
            ],
            **more,
        }
        for question in questions
    ]
    return {"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}


def rows(questions):
    return [
        {
            "id": question.id,
            "title": "t",
            "context": question.context,
            "question": question.question,
            "answers": {
                "text": list(question.answers),
                "answer_start": list(question.answer_starts),
            },
        }
        for question in questions
    ]


@pytest.fixture(scope="module", params=["uncased", "cased"])
def tokenizer(request):
    text = [f"{CONTEXT} What, 1 2 3 4 5 6 7 8 9 é ß İ 我 가?"] * 3
    return WordPieceTokenizer.train(text, size=120, lowercase=request.param == "uncased")


def text_of(questions, windows, window, start, end):
    """The context's text from one column of a row to another."""
    shift = windows.window_starts[window] - windows.context_columns[window]
    first, last = windows.character_starts[start + shift], windows.character_ends[end + shift]
    return questions[windows.windows.sequences[window]].context[first:last]


def test_every_format(tmp_path):
    content = json.dumps(squad(QUESTIONS)).encode()
    (tmp_path / "a.json").write_bytes(content)
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(content))
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows(QUESTIONS))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    listed = squad(QUESTIONS)["data"][0]["paragraphs"][0]["qas"]
    lines = "\n".join(json.dumps(row | {"context": CONTEXT, "title": "t"}) for row in listed)
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    for name in ("a.json", "a.json.xz", "a.jsonl", "b.jsonl.xz"):
        assert read_questions(tmp_path / name) == QUESTIONS, name
    assert [question.is_impossible for question in QUESTIONS] == [False, False, True]


def test_questions_without_an_answer_can_be_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(squad(QUESTIONS)))
    with pytest.raises(UserError, match=r"a.json: question c has no answer; give it one, or"):
        read_questions(tmp_path / "a.json", can_be_impossible=False)
    (tmp_path / "a.json").write_text(json.dumps(squad(QUESTIONS[:2])))
    assert read_questions(tmp_path / "a.json", can_be_impossible=False) == QUESTIONS[:2]


@pytest.mark.parametrize(
    ("answer", "start", "reason"),
    [
        ("dog", 39, r"the answer 'dog' of question q is not at character 39 .* at 40 only"),
        ("cat", 5, r"it is at 4, 17, so set answer_start to the right one"),
        ("a", 0, r"it is at 5, 9, 18, \.\.\., so set"),
        ("dog", -8, "is not at character -8"),
        ("dog", 1000, "is not at character 1000"),
        ("bird", 4, "nor is it anywhere else there, so correct the answer"),
        ("Cat", 4, "nor is it anywhere else there"),
        ("", 4, "question q has an empty answer"),
        (" ", 3, "question q has an empty answer"),
    ],
)
def test_answers_that_are_not_in_their_context(tmp_path, answer, start, reason):
    question = Question("q", CONTEXT, "What?", (answer,), (start,))
    (tmp_path / "a.json").write_text(json.dumps(squad([question])))
    (tmp_path / "a.jsonl").write_text(json.dumps(rows([question])[0]))
    with pytest.raises(UserError, match=reason) as caught:
        read_questions(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value)
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: .*" + reason):
        read_questions(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": 3}, "line 2 has a 'id' that is no text: 3"),
        ({"question": None}, "line 2 has a 'question' that is no text: None"),
        ({"context": ["x"]}, "line 2 has a 'context' that is no text"),
        ({"answers": "Bö"}, r"line 2 \(question b\) has answers that are not pairs"),
        ({"answers": {"text": ["Bö"], "answer_start": []}}, "answers that are not pairs"),
        ({"answers": {"text": "Bö", "answer_start": 28}}, "answers that are not pairs"),
        ({"answers": {"text": ["Bö"], "answer_start": ["28"]}}, "answers that are not pairs"),
        ({"answers": {"text": ["Bö"], "answer_start": [True]}}, "answers that are not pairs"),
        ({"answers": {"text": ["Bö"]}}, "has no key 'answer_start'; its keys are text"),
        ({"answers": ["Bö"]}, "is str where an object is needed"),
        ({"id": "a"}, "two questions of the id 'a'"),
    ],
)
def test_rows_that_are_not_right(tmp_path, change, reason):
    first, second = rows(QUESTIONS[:2])
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second | change)}\n")
    with pytest.raises(UserError, match=reason) as caught:
        read_questions(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"version": 1}, "not in SQuAD's format: it has no list 'data'; .* ending in .jsonl"),
        ({"data": [{}]}, r"data\[0\] has no key 'paragraphs'"),
        ({"data": [3]}, r"data\[0\] is int where an object is needed"),
        ({"data": [{"paragraphs": {}}]}, r"data\[0\] has a 'paragraphs' that is no list"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"paragraphs\[0\] has no key 'context'"),
        (
            {"data": [{"paragraphs": [{"context": "", "qas": [{"id": "a"}]}]}]},
            r"a.json, data\[0\].paragraphs\[0\].qas\[0\] has no key 'question'",
        ),
    ],
)
def test_files_that_are_not_squad(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason):
        read_questions(path)


def test_rows_of_windows(tokenizer):
    """Against the layout of run_squad.py, written out token by token."""
    windows = make_windows(QUESTIONS, tokenizer, max_length=14, stride=4, max_question_length=5)
    batch = windows.rows(np.arange(len(windows)), 16)
    asked = tokenizer.encode_batch([question.question for question in QUESTIONS])
    context = tokenizer.encode_batch([CONTEXT])[0]
    number = 0
    for question in asked:
        question = question[:5]
        room = 14 - 3 - len(question)
        start = 0
        while True:
            window = context[start : start + room]
            ids = [tokenizer.cls_id, *question, tokenizer.sep_id, *window, tokenizer.sep_id]
            assert batch["lengths"][number] == windows.lengths[number] == len(ids) <= 14
            assert batch["token_ids"][number].tolist() == ids + [tokenizer.pad_id] * (16 - len(ids))
            segments = [0] * (len(question) + 2) + [1] * (len(window) + 1)
            assert batch["segment_ids"][number].tolist() == segments + [0] * (16 - len(ids))
            number += 1
            if start + room >= len(context):
                break
            start += min(4, room)
    assert number == len(windows) > len(QUESTIONS)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    some = windows.rows(np.array([3, 1]), 14)
    for name, array in some.items():
        np.testing.assert_array_equal(
            array, batch[name][[3, 1], :14] if array.ndim == 2 else batch[name][[3, 1]]
        )


WORDS = st.sampled_from(
    ["The", "cat", "sat", "123", "é", "ße", "İ", "我我", "가", "e\u0301", "?!", "\u200b", "\t"]
)


@settings(max_examples=200)
@given(data=st.data())
def test_windows_hold_the_answers(tokenizer, data):
    questions = []
    for number in range(data.draw(st.integers(1, 4))):
        context = " ".join(data.draw(st.lists(WORDS, min_size=1, max_size=30)))
        start = data.draw(st.integers(0, len(context) - 1))
        answer = context[start : start + data.draw(st.integers(1, 20))]
        answers = ((answer,), (start,))
        if not answer.strip() or not tokenizer.encode_batch([answer])[0]:
            answers = ((), ())
        questions.append(Question(str(number), context, "What cat?", *answers))
    windows = make_windows(questions, tokenizer, max_length=20, stride=5, max_question_length=4)
    batch = windows.rows(np.arange(len(windows)), 20)
    found = set()
    for window, (start, end) in enumerate(
        zip(batch["start_positions"], batch["end_positions"], strict=True)
    ):
        question = questions[windows.windows.sequences[window]]
        if start == 0:
            assert end == 0
            continue
        found.add(question.id)
        assert windows.context_columns[window] <= start <= end < batch["lengths"][window] - 1
        # Whole tokens, and none that has no character of the answer.
        text = text_of(questions, windows, window, start, end)
        assert question.answers[0].strip("\u200b \t") in text
        if end > start:
            assert text_of(questions, windows, window, start + 1, end) in text[1:]
            inner = text_of(questions, windows, window, start + 1, end - 1)
            assert inner in question.answers[0]
    short = [q for q in questions if q.answers and len(q.answers[0]) <= 3]
    assert {question.id for question in short} <= found
    assert not {question.id for question in questions if question.is_impossible} & found


def test_answers_of_whole_words_come_back(tokenizer):
    windows = make_windows(QUESTIONS, tokenizer, max_length=200)
    assert windows.windows.sequences.tolist() == [0, 1, 2]
    texts = [
        text_of(
            QUESTIONS, windows, window, windows.answer_starts[window], windows.answer_ends[window]
        )
        for window in (0, 1)
    ]
    assert texts == ["The cat", "Bö"]
    assert windows.answer_starts[2] == windows.answer_ends[2] == 0


def test_contexts_without_tokens_have_a_window(tokenizer):
    windows = make_windows([Question("a", " \u200b", "Who?")], tokenizer, max_length=80)
    batch = windows.rows(np.arange(1), 80)
    assert batch["lengths"] == 3 + len(tokenizer.encode_batch(["Who?"])[0])
    assert len(make_windows([], tokenizer, max_length=80)) == 0


def test_what_has_no_windows(tokenizer):
    for lengths in ({"max_length": 67}, {"max_length": 384, "stride": 0}):
        with pytest.raises(UserError, match="leaves no window .* max_length of at least 68"):
            make_windows(QUESTIONS, tokenizer, **lengths)
    lost = Question("x", "a \u200b b", "Who?", ("\u200b",), (2,))
    with pytest.raises(UserError, match="of question x has no character that the tokenizer keeps"):
        make_windows([*QUESTIONS, lost], tokenizer, max_length=80)


def test_real_questions(real_data):
    """The number of windows is the one known of run_squad.py at its defaults."""
    questions = read_questions(real_data / "qa/dev-v1.1.json.xz")
    assert len(questions) == 10570
    assert questions == read_questions(real_data / "qa/squad_v1.1.dev.jsonl.xz")
    vocabulary = real_data / "vocab/bert-base-uncased-vocab.txt"
    windows = make_windows(questions, WordPieceTokenizer.from_file(vocabulary), max_length=384)
    assert len(windows) == 10833
    answered = np.flatnonzero(windows.answer_starts)
    assert len(np.unique(windows.windows.sequences[answered])) == len(questions)
    exact = {
        windows.windows.sequences[window]
        for window in answered
        if text_of(
            questions, windows, window, windows.answer_starts[window], windows.answer_ends[window]
        )
        == questions[windows.windows.sequences[window]].answers[0]
    }
    # The other answers start or end inside a token.
    assert len(exact) >= 10538
