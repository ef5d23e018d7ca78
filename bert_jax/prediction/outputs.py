"""Where answers go: standard output, or a file that appears when it is whole."""

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from bert_jax.data.file_lines import COMPRESSIONS
from bert_jax.errors import UserError
from bert_jax.training.atomic_file import open_atomically
from bert_jax.training.progress import follow

ARRAY_SUFFIX = ".npy"


class Answer(NamedTuple):
    """An answer in both forms.

    Attributes:
      record: plain JSON.
      text: readable, of one line or several.
    """

    record: dict[str, Any]
    text: str


def write_answers(answers: Iterable[Answer], path: str | None, *, as_json: bool) -> None:
    """Writes answers as they come, as readable text or JSON lines.

    Args:
      answers: of any number.
      path: a file to replace; None is standard output.
      as_json: whether to write an object a line.

    Raises:
      UserError: the file cannot be written, or its name promises something else than text.
    """
    if path is not None and path.lower().endswith((*COMPRESSIONS, ARRAY_SUFFIX)):
        raise UserError(f"--output {path} would be plain text; give it a name that ends otherwise")
    with _open(path) as file:
        for answer in answers if path is None else follow(answers, None, "answers"):
            shown = json.dumps(answer.record, ensure_ascii=False) if as_json else answer.text
            print(shown, file=file)


@contextlib.contextmanager
def _open(path: str | None) -> Iterator[TextIO]:
    if path in (None, "/dev/stdout"):  # which may lead to a file that has more in it
        if sys.stdout is None:
            raise UserError("standard output is closed; give --output FILE")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # As files are, whatever the terminal's locale. A file's name need not be UTF-8.
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        yield sys.stdout
        sys.stdout.flush()  # here, where a closed pipe can still be told
        return
    with open_atomically(Path(path).expanduser()) as raw:
        file = io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", newline="\n")
        yield file
        file.flush()
        file.detach()


def write_npy(blocks: Iterable[np.ndarray], path: str, width: int) -> None:
    """Writes blocks of rows as one array, in memory that does not grow with them.

    Args:
      blocks: float32 [n, width] each.
      path: the ``.npy`` file to replace.
      width: columns of the array.

    Raises:
      UserError: the file cannot be written.
    """
    header = {"descr": "<f4", "fortran_order": False}
    rows = 0
    with open_atomically(Path(path).expanduser()) as file:
        # NumPy leaves room in the header for the number of rows to grow.
        np.lib.format.write_array_header_1_0(file, header | {"shape": (0, width)})
        start = file.tell()
        for block in follow(blocks, None, "blocks of texts"):
            file.write(np.ascontiguousarray(block, "<f4").data)
            rows += len(block)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, width)})
        assert file.tell() == start
