"""What a command answers: texts from arguments, a file or standard input, one at a time."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from bert_jax.data.file_lines import decoded_lines, is_unicode, text_lines
from bert_jax.data.tables import is_table, table_rows
from bert_jax.errors import UserError

Fields: TypeAlias = dict[str, Any]


class Example(NamedTuple):
    """One thing to answer.

    Attributes:
      place: where it stands, for messages: ``FILE, line 3``.
      fields: ``text`` and what else a command reads; the answer repeats them.
    """

    place: str
    fields: Fields


class Reader(NamedTuple):
    """How a command reads an example.

    Attributes:
      line: of a line of text, and its place.
      row: of a table's row, and its place.
    """

    line: Callable[[str, str], Fields]
    row: Callable[[Mapping[str, Any], str], Fields]


def read_examples(arguments: argparse.Namespace, reader: Reader) -> Iterator[Example]:
    """The examples that the arguments ``texts`` and ``input`` name; else standard input's lines.

    Raises:
      UserError: both are given, or something cannot be read.
    """
    if arguments.texts and arguments.input:
        raise UserError("there are texts and an --input; give one of them")
    if arguments.texts:
        for number, text in enumerate(arguments.texts, start=1):
            if not is_unicode(text):
                raise UserError(f"text {number} is not UTF-8; write it in a file and give --input")
        lines = ((text, f"text {n}") for n, text in enumerate(arguments.texts, start=1))
        return (Example(place, reader.line(text, place)) for text, place in lines)
    return read_file(arguments.input, reader)


def read_file(path: str | None, reader: Reader) -> Iterator[Example]:
    """The examples of a file: rows of .jsonl, .csv and .tsv, lines of any other.

    Args:
      path: compressed (.gz, .xz, .zst) or not; None reads standard input.
      reader: makes the examples.

    Raises:
      UserError: it cannot be read, or an example has not what the reader needs.
    """
    if path is not None and is_table(path):
        for place, row in table_rows(path):
            yield Example(place, reader.row(row, place))
        return
    if path is None and sys.stdin is None:
        raise UserError("there are no texts, and standard input is closed; give --input FILE")
    name = path or "standard input"
    source = (
        decoded_lines(sys.stdin.buffer, name)
        if path is None
        else text_lines(Path(path).expanduser())
    )
    for number, line in enumerate(source, start=1):
        place = f"{name}, line {number}"
        yield Example(place, reader.line(line.removesuffix("\n").removesuffix("\r"), place))


def text_column(row: Mapping[str, Any], column: str, place: str, flag: str) -> str:
    """A text of a table's row.

    Args:
      row: the row.
      column: the column's name.
      place: where the row stands.
      flag: the flag that names the column.

    Raises:
      UserError: there is no such column, or no text in it.
    """
    if column not in row:
        raise UserError(
            f"{place} has no column {column!r}; name one of {', '.join(row)} with {flag}"
        )
    text = row[column]
    if not isinstance(text, str):
        raise UserError(f"{place} has {text!r} in the column {column!r}, where a text should stand")
    return text


def whole_lines(arguments: argparse.Namespace) -> Reader:
    """Reads single texts: a line each, or the column ``--text``."""

    def row(values: Mapping[str, Any], place: str) -> Fields:
        return {"text": text_column(values, arguments.text, place, "--text")}

    return Reader(lambda line, place: {"text": line}, row)


def lines_of_pairs(arguments: argparse.Namespace) -> Reader:
    """Reads texts or pairs: a line with a tab between the two, or the columns of the flags."""

    def line(text: str, place: str) -> Fields:
        first, tab, second = text.partition("\t")
        if "\t" in second:
            raise UserError(f"{place} has several tabs; one stands between the two of a pair")
        return {"text": first, "second_text": second} if tab else {"text": first}

    def row(values: Mapping[str, Any], place: str) -> Fields:
        fields = {"text": text_column(values, arguments.text, place, "--text")}
        if arguments.second_text:
            second = text_column(values, arguments.second_text, place, "--second_text")
            fields["second_text"] = second
        return fields

    return Reader(line, row)


def first_and_second(examples: Sequence[Example]) -> tuple[list[str], list[str] | None]:
    """The texts of a block, and the second texts of pairs.

    Raises:
      UserError: some are pairs, and others are not.
    """
    first = [example.fields["text"] for example in examples]
    second = [example.fields.get("second_text") for example in examples]
    for example, text in zip(examples, second, strict=True):
        if (text is None) != (second[0] is None):
            kinds = "a pair" if text is not None else "a single text"
            raise UserError(
                f"{example.place} is {kinds}, unlike {examples[0].place}; give texts of one kind"
            )
    return first, None if second[0] is None else [text or "" for text in second]
