"""Files of text, compressed or not: their bytes, their lines, and lines of JSON."""

import contextlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zstandard

from bert_jax.errors import UserError


class _Decompressor(Protocol):
    """Of one frame of a compressed file, which may have several (gzip: members, xz: streams)."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool:
        """Whether the frame has ended."""

    @property
    def unused_data(self) -> bytes:
        """What came after its end."""


# zstd refuses frames of more history than 128 MiB unless told; the format allows 2 GiB.
_LARGEST_ZSTANDARD_WINDOW = 2**31
_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    ".gz": partial(zlib.decompressobj, 16 + zlib.MAX_WBITS),  # with gzip's header and checksum
    ".xz": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ),
    ".zst": lambda: zstandard.ZstdDecompressor(
        max_window_size=_LARGEST_ZSTANDARD_WINDOW
    ).decompressobj(),
}
COMPRESSIONS = tuple(_DECOMPRESSORS)
DECOMPRESSION_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
BYTE_ORDER_MARK = "\ufeff"
_COMPRESSED_BLOCK = 4096  # bytes at once: they may be thousands of times as many decompressed
_BUFFER = 2**17


class Readable(Protocol):
    """What is needed of a file: its bytes, in blocks or by line."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""

    def __iter__(self) -> Iterator[bytes]: ...


def read_text(path: Path) -> str:
    """The text of a whole file, decompressed where its name ends in .gz, .xz or .zst.

    Line ends are kept as they are; a byte order mark is not.

    Raises:
      UserError: the file cannot be opened, is a broken archive or no UTF-8.
    """
    return "".join(text_lines(path))


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, decompressed like ``read_text``'s, one at a time.

    Only "\\n" ends a line; a byte order mark is left out.

    Raises:
      UserError: as ``read_text`` does.
    """
    try:
        with path.open("rb") as raw, decompressed(raw, path.suffix) as stream:
            yield from decoded_lines(stream, str(path))
    except DECOMPRESSION_ERRORS as error:
        raise UserError(f"{path} is a broken {path.suffix} file ({error}); repair it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from None


def decoded_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines of UTF-8 as text; ``name`` is what they come from, for messages.

    Raises:
      UserError: a line is not UTF-8.
    """
    offset = 0
    for line in lines:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} is not UTF-8: byte {line[error.start]:#04x} at offset "
                f"{offset + error.start}; convert it first"
            ) from None
        yield text if offset else text.removeprefix(BYTE_ORDER_MARK)
        offset += len(line)


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with a name for messages: ``FILE, line 3``.

    Blank lines are passed over.

    Raises:
      UserError: the file cannot be read, or a line is not one JSON object.
    """
    for number, line in enumerate(text_lines(path), start=1):
        if line and not line.isspace():
            where = f"{path}, line {number}"
            yield where, parse_object(line, where)


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parses a JSON object; ``where`` names it in messages.

    Raises:
      UserError: it is none, or it has half of a surrogate pair.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); repair it") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is JSON, but no object; write {{...}}")
    # Only an escape can write such a half, since the file is UTF-8.
    if "\\u" in text and not is_unicode(json.dumps(value, ensure_ascii=False)):
        raise UserError(f"{where} has half of a surrogate pair, which is no character; repair it")
    return value


def uncompressed_suffix(path: Path) -> str:
    """The suffix that tells a file's format, in lower case: ``.jsonl`` of ``a.JSONL.xz``."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def decompressed(raw: BinaryIO, suffix: str) -> contextlib.AbstractContextManager[Readable]:
    """The bytes of a file, decompressed where its suffix is one of ``COMPRESSIONS``.

    Reading raises one of ``DECOMPRESSION_ERRORS`` where the file is damaged or ends too early.
    """
    decompressor = _DECOMPRESSORS.get(suffix.lower())
    if decompressor is None:
        return contextlib.nullcontext(raw)
    return io.BufferedReader(_CompressedFile(raw, decompressor), _BUFFER)


class _CompressedFile(io.RawIOBase):
    """The bytes of a compressed file of one frame or several, zeros after each left out.

    Python's own readers take part of some files for the whole: lzma's ends at a stream that begins
    with an error, zstandard's at the end of half a download, gzip's has nothing of an empty file.
    """

    def __init__(self, raw: BinaryIO, decompressor: Callable[[], _Decompressor]) -> None:
        super().__init__()
        self._raw = raw
        self._decompressor = decompressor
        self._frame: _Decompressor | None = None  # the one that is being read
        self._frames = 0
        self._compressed = b""
        self._text = memoryview(b"")  # so that a part is taken without a copy of the rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._text and self._advance():
            pass
        count = min(len(buffer), len(self._text))
        buffer[:count] = self._text[:count]
        self._text = self._text[count:]
        return count

    def _advance(self) -> bool:
        """Decompresses some more; False at the end of the file."""
        self._compressed = self._compressed or self._raw.read(_COMPRESSED_BLOCK)
        if not self._compressed:
            if self._frame is not None or not self._frames:
                raise EOFError("it ends too early")
            return False
        if self._frame is None:
            # What writes to tapes and disks fills blocks up; no frame begins with a zero.
            self._compressed = self._compressed.lstrip(b"\0") if self._frames else self._compressed
            if not self._compressed:
                return True
            self._frame = self._decompressor()
            self._frames += 1
        self._text = memoryview(self._frame.decompress(self._compressed))
        self._compressed = b""
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None
        return True


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can escape and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
