"""The documents that text files and files of JSON lines hold."""

import dataclasses
import glob
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bert_jax.data.documents import MAX_PIECE_CHARACTERS, Passage, Tally, whole_document
from bert_jax.data.file_lines import (
    BYTE_ORDER_MARK,
    COMPRESSIONS,
    DECOMPRESSION_ERRORS,
    Readable,
    decompressed,
    is_unicode,
    uncompressed_suffix,
)
from bert_jax.errors import UserError, first_line
from bert_jax.storage import as_path, file_size, is_remote, store_errors

BadInput = Literal["stop", "skip"]
DocumentUnit = Literal["file", "blank_line"]

_TEXT_SUFFIXES = (".txt", ".text", ".md")
_JSON_SUFFIXES = (".jsonl", ".json")
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


@dataclass(frozen=True)
class TextFiles:
    """The files that one ``--input`` names.

    Attributes:
      name: the input as the user typed it.
      paths: the files, in the order in which they are read.
      unit: for text files, what a document is: the file, or what stands between blank lines.
      text_field: for JSON lines (one document each), the key of the text.
      bad_input: whether bytes that are not UTF-8, lines that are not JSON and broken archives stop
        the reading, or are left out and counted.
    """

    name: str
    paths: tuple[Path, ...]
    unit: DocumentUnit = "file"
    text_field: str = "text"
    bad_input: BadInput = "stop"

    @property
    def disk_bytes(self) -> int:
        """The files' size on disk."""
        return sum(map(file_size, self.paths))

    def passages(self, tally: Tally) -> Iterator[Passage]:
        """The files' documents.

        Raises:
          UserError: a file cannot be opened; or, unless bad input is skipped, it is no UTF-8, no
            JSON lines or a broken archive.
        """
        for path in self.paths:
            blocks = self._blocks(path, tally)
            if uncompressed_suffix(path) in _JSON_SUFFIXES:
                yield from self._json_documents(path, blocks, tally)
            elif self.unit == "blank_line":
                yield from _documents_between_blank_lines(self._texts(path, blocks, tally))
            else:
                yield from _one_document(self._texts(path, blocks, tally))

    def parts(self) -> list["TextFiles"]:
        """One for each file."""
        return [dataclasses.replace(self, paths=(path,)) for path in self.paths]

    def _blocks(self, path: Path, tally: Tally) -> Iterator[tuple[int, bytes]]:
        """(Offset, bytes) of blocks, cut at line breaks; bytes count towards ``tally``."""
        with store_errors(path):
            try:
                with path.open("rb") as raw, decompressed(raw, path.suffix) as stream:
                    before = 0
                    for block in _cut_bytes(stream):
                        position = raw.tell()
                        tally.disk_bytes += position - before
                        before = position
                        yield block
            except DECOMPRESSION_ERRORS as error:
                self._bad(f"{path} is a broken {path.suffix} file ({error})", tally)
            except OSError as error:
                raise UserError(
                    f"{path} cannot be read ({error.strerror or first_line(error)}); check its "
                    "permissions"
                ) from None

    def _texts(
        self, path: Path, blocks: Iterable[tuple[int, bytes]], tally: Tally
    ) -> Iterator[str]:
        for offset, block in blocks:
            try:
                text = block.decode("utf-8")
            except UnicodeDecodeError:
                lines = self._good_lines(path, offset, block, tally)
                text = "".join(line for _, line in lines)
            yield text.removeprefix(BYTE_ORDER_MARK) if offset == 0 else text

    def _good_lines(
        self, path: Path, offset: int, block: bytes, tally: Tally
    ) -> Iterator[tuple[int, str]]:
        """(Offset, text) of a block's lines; those that are not UTF-8 are left out."""
        for line in block.splitlines(keepends=True):
            try:
                yield offset, line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + error.start
                self._bad(
                    f"{path} is not UTF-8: byte {line[error.start]:#04x} at offset {at}", tally
                )
            offset += len(line)

    def _json_documents(
        self, path: Path, blocks: Iterable[tuple[int, bytes]], tally: Tally
    ) -> Iterator[Passage]:
        for offset, line in _whole_lines(blocks):
            for at, text in self._good_lines(path, offset, line, tally):
                text = text.removeprefix(BYTE_ORDER_MARK)
                if not text.strip():
                    continue
                try:
                    document = json.loads(text)[self.text_field]
                except ValueError as error:
                    reason = f"is not a line of JSON ({error})"
                except KeyError:
                    reason = (
                        f"has no key {self.text_field!r}; name the text's key with --text_field"
                    )
                except TypeError:
                    reason = "is not a JSON object; write one object a line"
                else:
                    if isinstance(document, str) and is_unicode(document):
                        yield from whole_document(document)
                        continue
                    reason = f"has no text under the key {self.text_field!r}"
                    if isinstance(document, str):
                        reason = "has half of a surrogate pair, which is no character"
                self._bad(f"{path}, the line at byte {at}, {reason}", tally)

    def _bad(self, message: str, tally: Tally) -> None:
        if self.bad_input == "stop":
            hint = "" if ";" in message else "; repair it"
            raise UserError(f"{message}{hint}, or leave such input out with --bad_input skip")
        tally.skipped += 1


def find_files(pattern: str) -> tuple[Path, ...]:
    """The files that a path, a directory or a glob pattern names, in alphabetical order.

    Of a directory, files of any depth that end as text or JSON lines do.

    Raises:
      UserError: there are none.
    """
    path = as_path(pattern)
    if is_remote(pattern):
        with store_errors(pattern):
            found = _find_remote_files(pattern)
    elif path.is_dir():
        found = [file for file in _files_below(path) if _is_text(file) and file.is_file()]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        found = [file for file in found if file.is_file()]
    if not found and path.is_dir():
        raise UserError(
            f"The directory {pattern} holds no files ending in "
            f"{', '.join(_TEXT_SUFFIXES + _JSON_SUFFIXES)} (or those with "
            f"{', '.join(COMPRESSIONS)}); give a pattern such as '{pattern}/*'"
        )
    if not found:
        raise UserError(f"No file matches --input {pattern!r}; check the path")
    return tuple(sorted(found, key=os.fspath))


def _find_remote_files(pattern: str) -> list[Path]:
    path = as_path(pattern)
    if glob.has_magic(pattern):
        # A store is listed below a path without wildcards: its bucket.
        bucket = as_path("/".join(pattern.split("/")[:3]))
        if "**" in pattern:
            raise UserError(
                f"--input {pattern!r} has **, which object stores do not offer; name the directory"
            )
        return list(bucket.glob(str(path.relative_to(bucket))))
    if not path.exists():
        return []
    return list(_text_files_below(path)) if path.is_dir() else [path]


def _files_below(directory: Path) -> Iterator[Path]:
    """The files of any depth, those behind links to directories too, each directory once."""
    seen = set()
    for place, directories, files in os.walk(directory, followlinks=True):
        seen.add(os.path.realpath(place))
        directories[:] = sorted(
            name for name in directories if os.path.realpath(os.path.join(place, name)) not in seen
        )
        yield from (Path(place, name) for name in files)


def _text_files_below(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        # Asking what each file is would be a request apiece.
        if _is_text(path):
            yield path
        elif path.is_dir():
            yield from _text_files_below(path)


def _is_text(path: Path) -> bool:
    return uncompressed_suffix(path) in _TEXT_SUFFIXES + _JSON_SUFFIXES


def _cut_bytes(stream: Readable) -> Iterator[tuple[int, bytes]]:
    """(Offset, bytes) of blocks, cut after a line break, else white space, else a character."""
    offset = 0
    rest = b""
    while new := stream.read(MAX_PIECE_CHARACTERS - len(rest)):
        block = rest + new
        if len(block) < MAX_PIECE_CHARACTERS:
            rest = block
            continue
        # Any white space: a block of nothing else is left out, and must not have parted two words.
        space = max(block.rfind(character) for character in b" \t\r\v\f") + 1
        end = block.rfind(b"\n") + 1 or space or _last_character_start(block)
        yield offset, block[:end]
        offset += end
        rest = block[end:]
    if rest:
        yield offset, rest


def _last_character_start(block: bytes) -> int:
    """Where the last UTF-8 character of a block starts; its end, where that is not UTF-8 anyway."""
    for at in range(len(block) - 1, len(block) - 5, -1):
        if block[at] & 0b1100_0000 != 0b1000_0000:
            return at
    return len(block)


def _whole_lines(blocks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """(Offset, bytes) of lines, put together where they were cut into blocks."""
    start = 0
    parts: list[bytes] = []
    for offset, block in blocks:
        for line in io.BytesIO(block):
            if not parts:
                start = offset
            parts.append(line)
            offset += len(line)
            if line.endswith(b"\n"):
                yield start, b"".join(parts)
                parts = []
    if parts:
        yield start, b"".join(parts)


def _one_document(texts: Iterable[str]) -> Iterator[Passage]:
    starts_document = True
    for text in texts:
        if text and not text.isspace():
            yield Passage(text, starts_document)
            starts_document = False


def _documents_between_blank_lines(texts: Iterable[str]) -> Iterator[Passage]:
    rest = ""
    continues = False  # whether ``rest`` belongs to a document of which a piece was yielded
    for text in texts:
        *ended, rest = _BLANK_LINES.split(rest + text)
        for document in ended:
            if document and not document.isspace():
                yield Passage(document, not continues)
            continues = False
        if len(rest) >= MAX_PIECE_CHARACTERS // 2:
            # White space stays, for it may be the beginning of a blank line.
            body = rest.rstrip()
            if body:
                yield Passage(body, not continues)
                continues = True
            rest = rest[len(body) :]
    if rest and not rest.isspace():
        yield Passage(rest, not continues)
