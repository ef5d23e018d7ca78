"""Tables of examples: JSON lines, CSV and TSV files with named columns, and TFDS data sets."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.data.file_lines import json_rows, text_lines, uncompressed_suffix
from bert_jax.data.tfds_rows import TfdsRows
from bert_jax.errors import UserError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 2**31 - 1  # characters; the module's own limit is 131,072, less than a book
_JSON_SUFFIXES = (".jsonl", ".json")


class Table(NamedTuple):
    """Some columns of a data set.

    Attributes:
      places: where each row stands, for messages: ``train.tsv, line 3``.
      columns: each column's values by its name: texts from CSV and TSV, whatever JSON holds, texts
        and numbers from TFDS.
      class_names: of the columns that TFDS has names of classes for.
    """

    places: Sequence[str]
    columns: dict[str, list[Any]]
    class_names: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.places)


def read_table(path: str | Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Reads columns of a file, compressed (.gz, .xz, .zst) or not, by the ending of its name.

    Args:
      path: a ``.jsonl`` (or ``.json``), ``.csv`` or ``.tsv`` file; the last two begin with a line
        of names.
      columns: the columns that every row must have.
      optional: columns that are read where the file has them.

    Raises:
      UserError: the file cannot be read, is of none of these kinds, or lacks a column.
    """
    if not is_table(path):
        raise UserError(
            f"{path} is no table that can be read; give a file named *.jsonl, *.csv or *.tsv"
        )
    places, rows = _unzip(table_rows(path))
    if not rows:
        raise UserError(f"{path} has no rows; give a file with examples")
    present = [*columns, *(name for name in optional if name in rows[0])]
    for place, row in zip(places, rows, strict=True):
        for name in present:
            if name not in row:
                raise UserError(f"{place} has no column {name!r}; its columns are {', '.join(row)}")
    return Table(places, {name: [row[name] for row in rows] for name in present}, {})


def is_table(path: str | Path) -> bool:
    """Whether the name of a file says that it has named columns."""
    return uncompressed_suffix(Path(path)) in (*_JSON_SUFFIXES, *_SEPARATORS)


def table_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file for which ``is_table`` holds, one at a time.

    Yields:
      Where a row stands, for messages, and its values by column.

    Raises:
      UserError: the file cannot be read, or a row is broken.
    """
    path = Path(path).expanduser()
    separator = _SEPARATORS.get(uncompressed_suffix(path))
    return json_rows(path) if separator is None else _separated_rows(path, separator)


def read_tfds_table(
    name: str,
    split: str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    data_dir: str | None = None,
) -> Table:
    """Reads columns of a split of a TFDS data set.

    Args:
      name: ``NAME`` or ``NAME/CONFIG``.
      split: the split, in TFDS's notation.
      columns: the features that the data set must have.
      optional: features that are read where it has them.
      data_dir: where TFDS keeps its data; None is TFDS's own default.

    Raises:
      UserError: it cannot be read, or lacks a feature.
    """
    rows = TfdsRows(name, split, data_dir)
    present = [*columns, *(column for column in optional if column in rows)]
    values: dict[str, list[Any]] = {column: [] for column in present}
    for row in rows.read(*present):
        for column, found in zip(present, row, strict=True):
            is_one = len(found) == 1 and not rows.is_sequence(column)
            values[column].append(found[0] if is_one else found)
    places = [f"{name}, {split}, row {number}" for number in range(len(rows))]
    names = {column: rows.class_names(column) for column in present}
    return Table(places, values, {column: found for column, found in names.items() if found})


def concatenate(tables: Sequence[Table]) -> Table:
    """One table of all rows, with the columns that all tables have."""
    shared = [name for name in tables[0].columns if all(name in t.columns for t in tables)]
    return Table(
        [place for table in tables for place in table.places],
        {name: [value for t in tables for value in t.columns[name]] for name in shared},
        tables[0].class_names,
    )


def texts_of(table: Table, column: str) -> list[str]:
    """A column of texts.

    Raises:
      UserError: a value is no text.
    """
    for place, value in zip(table.places, table.columns[column], strict=True):
        if not isinstance(value, str):
            raise UserError(
                f"{place} has {value!r} in the column {column!r}, where a text should stand"
            )
    return table.columns[column]


def _unzip(pairs: Iterable[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[dict[str, Any]]]:
    places, rows = [], []
    for place, row in pairs:
        places.append(place)
        rows.append(row)
    return places, rows


def _separated_rows(path: Path, separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # TSV knows no quotes: a quote in it is a character of the text.
    lines = text_lines(path)
    csv.field_size_limit(_LONGEST_FIELD)
    if separator == ",":
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE, strict=True)
    names: list[str] | None = None
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if names is None:
                names = row
                for name in names:
                    if names.count(name) > 1:
                        raise UserError(f"{place} names the column {name!r} twice; rename one")
                continue
            if not row:
                if len(names) > 1:
                    continue
                row = [""]  # an empty line is an empty text where there is one column
            if len(row) != len(names):
                raise UserError(
                    f"{place} has {len(row)} columns, and the first line names {len(names)}; "
                    "correct it"
                )
            yield place, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is broken ({error}); repair it") from None
