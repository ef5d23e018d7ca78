"""The documentation that is on every machine with Python: the built-in corpus.

It is the docstrings of the standard library and of the packages that bert_jax depends on, and the
topics of ``help()``. Source files are parsed, never imported. A document is a module.
"""

import ast
import concurrent.futures
import functools
import gc
import importlib.metadata
import inspect
import itertools
import multiprocessing
import os
import pydoc_data.topics
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bert_jax.data.documents import Passage, Tally, whole_document
from bert_jax.data.worker_processes import end_with_parent, explain_killed_worker
from bert_jax.errors import UserError

# What bert_jax needs to run; what these need comes along.
_PACKAGES = (
    "flax",
    "grain",
    "jax",
    "matplotlib",
    "ml-collections",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "scipy",
    "sentencex",
    "tensorflow-datasets",
    "tokenizers",
)
# Directories without documentation for readers: tests, and code of other packages.
_SKIPPED_DIRECTORIES = {
    "__pycache__",
    "_vendor",
    "idle_test",
    "site-packages",
    "test",
    "testing",
    "tests",
}
_FILES_AT_ONCE = 64
# Parsing takes most of the time. Files with less in triple quotes are a quarter of the source, and
# hold a thirtieth of the documentation.
_MIN_SHARE_OF_STRINGS = 0.1
_MIN_WORDS = 5
_MIN_SHARE_OF_LETTERS = 0.75

_LONG_STRING = re.compile(rb'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
_REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DOCTEST = re.compile(r"\s*(>>>|In \[)")
_RULE = re.compile(r"\s*([-=~^*#\"'+`._:])\1{2,}\s*$")
_TABLE = re.compile(r"\s*(\+[-=+]+\+|={2,}(\s+={2,})+|-{2,}(\s+-{2,})+|\|.*\|)\s*$")
_DIRECTIVE = re.compile(r"\s*\.\. ")
_CODE_DIRECTIVE = re.compile(
    r"\s*\.\. (code|code-block|doctest|math|plot|sourcecode|testcode|table)\b"
)
_FENCE = re.compile(r"\s*(```|~~~)")
_BULLET = re.compile(r"^\s*([-*+•]|\(?\d{1,2}[.)])\s+")
_FIELD = re.compile(r"^\s*:(param|type|arg|return|returns|rtype|raises)\b[^:]*:\s*")
_ROLE = re.compile(r":[\w:+.-]+:`~?")
_LINK_TARGET = re.compile(r"\s*<[^<>`]+>`_{0,2}")
_QUOTES = re.compile(r"`+_{0,2}")
_EMPHASIS = re.compile(r"(?<!\w)\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?!\w)")


@dataclass(frozen=True)
class Documentation:
    """The documentation of the standard library and of bert_jax's dependencies, as a source.

    Attributes:
      workers: processes that parse; 0 parses in this one. What is read does not depend on it.
    """

    workers: int = 0

    @property
    def name(self) -> str:
        """The name by which a user asks for it."""
        return "docs"

    @property
    def disk_bytes(self) -> None:
        """Not known: most of a source file is not documentation."""
        return None

    def passages(self, tally: Tally) -> Iterator[Passage]:
        """The documents; a paragraph that was seen before is left out, wherever it was.

        What stands in many modules alike would otherwise be in training and validation text both.
        """
        for document in self._documents:
            tally.disk_bytes += len(document)
            yield from whole_document(document)

    def parts(self) -> NoReturn:
        """None: other machines have other documentation.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"The input {self.name} is what is installed on this machine; prepare it without "
            "--beam_runner"
        )

    @functools.cached_property
    def _documents(self) -> list[str]:
        """All documents; kept, for a vocabulary is learnt from them before they are tokenised."""
        files = [*_standard_library_files(), *_package_files(documented_packages())]
        seen: set[str] = set()
        documents = []
        for paragraphs in itertools.chain(_topics(), _parse_all(files, self.workers)):
            new = [text for text in dict.fromkeys(paragraphs) if text not in seen]
            seen.update(new)
            if new:
                documents.append("\n\n".join(new))
        return documents


def clean_docstring(text: str) -> list[str]:
    """The prose of a docstring, as paragraphs on one line each.

    Left out are examples, code, tables, mathematics, headings, and what is too short or has too few
    letters to be a sentence; reStructuredText's and Markdown's marks are removed.
    """
    paragraphs = []
    for lines in _blocks(inspect.cleandoc(text).splitlines()):
        paragraph = _without_marks(" ".join(line.strip() for line in lines))
        if _is_prose(paragraph):
            paragraphs.append(paragraph)
    return paragraphs


def _standard_library_files() -> Iterator[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(set(subdirectories) - _SKIPPED_DIRECTORIES)
        yield from (Path(directory, name) for name in sorted(names) if _is_documented(name))


def documented_packages() -> list[str]:
    """The packages that bert_jax needs, and all that these need, as far as they are installed."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(_PACKAGES)
    while waiting:
        name = _normal_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            requirements = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or optional
        found.add(name)
        for requirement in requirements:
            match = _REQUIREMENT_NAME.match(requirement)
            if match and "extra ==" not in requirement:
                waiting.append(match.group())
    return sorted(found)


def _package_files(packages: Iterable[str]) -> Iterator[Path]:
    for name in packages:
        for file in sorted(importlib.metadata.files(name) or (), key=str):
            if _is_documented(file.name) and not _SKIPPED_DIRECTORIES.intersection(file.parts):
                path = Path(str(file.locate()))
                if path.exists():
                    yield path


def _is_documented(name: str) -> bool:
    is_test = name.endswith("_test.py") or name.startswith("test_") or name == "conftest.py"
    return name.endswith(".py") and not is_test


def _normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _topics() -> Iterator[list[str]]:
    for _, text in sorted(pydoc_data.topics.topics.items()):
        yield clean_docstring(text)


def _parse_all(files: list[Path], workers: int) -> Iterator[list[str]]:
    """The paragraphs of each file, in order."""
    groups = [files[i : i + _FILES_AT_ONCE] for i in range(0, len(files), _FILES_AT_ONCE)]
    if workers == 0:
        for group in groups:
            yield from _parse_group(group)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=end_with_parent
    )
    with pool, explain_killed_worker():
        for paragraphs in pool.map(_parse_group, groups):
            yield from paragraphs


def _parse_group(files: list[Path]) -> list[list[str]]:
    # Syntax trees have no cycles; looking for some doubles the time of parsing.
    collects = gc.isenabled()
    gc.disable()
    try:
        return [_module_paragraphs(file) for file in files]
    finally:
        if collects:
            gc.enable()


def _module_paragraphs(file: Path) -> list[str]:
    source = file.read_bytes()
    strings = sum(len(match.group()) for match in _LONG_STRING.finditer(source))
    if strings < _MIN_SHARE_OF_STRINGS * len(source):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes: not our code
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []  # a template, or for another version of Python
    return [
        paragraph for docstring in _docstrings(module) for paragraph in clean_docstring(docstring)
    ]


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in the order of the source."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield docstring
    for statement in node.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(statement)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            yield from _added_docstrings(statement.value)


def _added_docstrings(call: ast.Call) -> Iterator[str]:
    """What ``add_newdoc(...)`` gives to functions in C, as NumPy and SciPy do."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if not name.startswith("add_newdoc"):
        return
    for argument in ast.walk(call):
        value = argument.value if isinstance(argument, ast.Constant) else None
        if isinstance(value, str) and "\n" in value:
            yield value


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that make one paragraph each, without those that are no prose."""
    block: list[str] = []
    skipped_indent: int | None = None  # of what opened a code block; deeper lines belong to it
    in_fence = in_example = in_table = False
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if _FENCE.match(line):
            in_fence = not in_fence
        blank = not line.strip()
        if skipped_indent is not None and not blank and indent <= skipped_indent:
            skipped_indent = None
        in_example = not blank and (in_example or bool(_DOCTEST.match(line)))
        in_table = not blank and (in_table or bool(_TABLE.match(line)))
        next_line = lines[number + 1] if number + 1 < len(lines) else ""
        is_heading = bool(_RULE.match(next_line)) and not blank
        if _CODE_DIRECTIVE.match(line):
            skipped_indent = indent
        if (
            blank
            or in_fence
            or in_example
            or in_table
            or is_heading
            or skipped_indent is not None
            or _FENCE.match(line)
            or _RULE.match(line)
            or _DIRECTIVE.match(line)
        ):
            if block:
                yield block
            block = []
            continue
        previous_indent = len(block[-1]) - len(block[-1].lstrip()) if block else indent
        starts_item = bool(_BULLET.match(line) or _FIELD.match(line))
        hangs = bool(_BULLET.match(block[0])) if block else False
        if block and (
            starts_item or (indent != previous_indent and not (hangs and len(block) == 1))
        ):
            yield block
            block = []
        block.append(line)
        if line.rstrip().endswith("::"):
            skipped_indent = indent
            yield block
            block = []
    if block:
        yield block


def _without_marks(text: str) -> str:
    text = _FIELD.sub("", _BULLET.sub("", text, count=1), count=1)
    text = _LINK_TARGET.sub("", _ROLE.sub("", text))
    text = _EMPHASIS.sub(r"\1", _QUOTES.sub("", text))
    return " ".join(text.removesuffix("::").split())


def _is_prose(paragraph: str) -> bool:
    if len(paragraph.split()) < _MIN_WORDS or paragraph.startswith("TODO"):
        return False
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return letters >= _MIN_SHARE_OF_LETTERS * len(paragraph)
