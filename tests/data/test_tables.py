"""Tables are read as they were written, and what is wrong is named with its place."""

import csv
import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.tables import concatenate, read_table, texts_of
from bert_jax.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5)


@settings(max_examples=40)
@given(ROWS)
def test_csv_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
    table = read_table(path, ["text", "label"])
    assert list(zip(*table.columns.values(), strict=True)) == rows


@settings(max_examples=40)
@given(ROWS)
def test_json_lines_are_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "a.jsonl.gz"
    lines = [json.dumps({"label": label, "text": text}) for text, label in rows]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    table = read_table(path, ["text"], optional=["label", "weight"])
    assert table.columns == {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}
    assert table.places[-1] == f"{path}, line {len(rows)}"


def test_a_quote_in_tsv_is_a_character(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"to be\t1\n')
    assert read_table(path, ["text", "label"]).columns == {"text": ['"to be'], "label": ["1"]}


def test_an_empty_line_is_an_empty_text_where_there_is_one_column(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\na\n\nb\n")
    assert read_table(path, ["text"]).columns == {"text": ["a", "", "b"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "text,label\na,1\nb\n",
            "a.csv, line 3 has 1 columns, and the first line names 2",
        ),
        ("a.csv", "text,class\na,1\n", "a.csv, line 2 has no column 'label'; its columns are text"),
        ("a.csv", 'text,label\n"a,1\n', "a.csv, line 2 is broken"),
        ("a.csv", "text,label\n", "a.csv has no rows"),
        ("a.csv", "text,text,label\na,b,1\n", "a.csv, line 1 names the column 'text' twice"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1 is not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2 has no column 'label'"),
        ("a.jsonl", '{"text": "a"\n', "a.jsonl, line 1 is not JSON"),
        ("a.parquet", "", "a.parquet is no table that can be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_table(path, ["text", "label"])


def test_a_text_may_be_a_book(tmp_path):
    path = tmp_path / "books.csv"
    book = "word " * 100_000
    path.write_text(f"text,label\n{book},a\n")
    assert read_table(path, ["text", "label"]).columns == {"text": [book], "label": ["a"]}


def test_a_text_must_be_a_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n')
    table = read_table(path, ["text"])
    with pytest.raises(UserError, match="line 2 has 3 in the column 'text'"):
        texts_of(table, "text")


def test_tables_are_joined_by_the_columns_that_they_share(tmp_path):
    for name, header in (("a", "text,label"), ("b", "label,text,more")):
        (tmp_path / f"{name}.csv").write_text(f"{header}\n{','.join(header.split(','))}\n")
    tables = [read_table(tmp_path / f"{n}.csv", ["text"], ["label", "more"]) for n in "ab"]
    joined = concatenate(tables)
    assert joined.columns == {"text": ["text", "text"], "label": ["label", "label"]}
    assert len(joined) == 2
