"""The documentation on this machine as text."""

import ast
import inspect

from bert_jax.data import documentation
from bert_jax.data.documentation import Documentation, clean_docstring, documented_packages
from bert_jax.data.documents import Tally

DOCSTRING = """
    Returns the sum of all elements, which must be
    numbers of :class:`~numpy.ndarray` type.

    A longer explanation of ``axis`` follows here, with *emphasis* and
    a `link <https://example.org>`_ in it.

    Parameters
    ----------
    values : array_like
        The values that are to be added to each other.
    axis : int

    .. math::

        x = \\\\sum_i x_i^2 + and some more words in here

    Notes
    -----
    * The first item of the list goes over
      two lines of the docstring.
    * The second item of the list has one.

    ====  ====
    name  what is meant by all of these names
    ====  ====

    Examples are like this one here, as code::

        x = some code that looks like words do

    >>> print("an example that is not prose")
    the output of the example is no prose

    ```
    fenced code that also looks like words
    ```
"""


def test_prose_is_kept_and_the_rest_is_not():
    assert clean_docstring(DOCSTRING) == [
        "Returns the sum of all elements, which must be numbers of numpy.ndarray type.",
        "A longer explanation of axis follows here, with emphasis and a link in it.",
        "The values that are to be added to each other.",
        "The first item of the list goes over two lines of the docstring.",
        "The second item of the list has one.",
        "Examples are like this one here, as code",
    ]


def test_docstrings_come_in_the_order_of_the_source():
    module = ast.parse(
        inspect.cleandoc(
            '''
            """module"""
            class A:
                """class"""
                def f(self): """method"""
            add_newdoc("numpy", "f", """added
            later""")
            async def g(): """function"""
            "no docstring"
            '''
        )
    )
    found = list(documentation._docstrings(module))
    assert found == ["module", "class", "method", "added\nlater", "function"]


def test_a_paragraph_comes_once(tmp_path, monkeypatch):
    shared = "A paragraph that stands in both of the modules."
    (tmp_path / "a.py").write_text(f'"""{shared}\n\nThis is what the first one says."""\n')
    (tmp_path / "b.py").write_text(f'"""{shared}\n\nThis is what the second one says."""\n')
    (tmp_path / "c.py").write_text(f'"""{shared}"""\n')
    (tmp_path / "broken.py").write_text('"""Not Python at all, as one sees at once."""\ndef (\n')
    files = sorted(tmp_path.iterdir())
    monkeypatch.setattr(documentation, "_standard_library_files", lambda: files)
    monkeypatch.setattr(documentation, "documented_packages", list)
    monkeypatch.setattr(documentation, "_topics", lambda: [])
    texts = [passage.text for passage in Documentation().passages(Tally())]
    assert texts == [
        f"{shared}\n\nThis is what the first one says.",
        "This is what the second one says.",
    ]


def test_this_machine_is_documented():
    packages = documented_packages()
    assert {"numpy", "jax", "flax"} <= set(packages)
    assert packages == sorted(packages)
    files = [str(path) for path in documentation._package_files(["numpy"])]
    assert any(name.endswith("numpy/linalg/_linalg.py") for name in files)
    assert not any("/tests/" in name for name in files)
    library = [path.name for path in documentation._standard_library_files()]
    assert "argparse.py" in library
    topics = list(documentation._topics())
    assert sum(len(paragraph) for topic in topics for paragraph in topic) > 200_000
