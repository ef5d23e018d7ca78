"""What the labels in a table are taken for."""

from typing import Any

import numpy as np
import pytest

from bert_jax.data.tables import Table
from bert_jax.errors import UserError
from bert_jax.tasks.labelled_texts import class_numbers, find_names, label_sets, values_of

TFDS = {"label": ("2", "1", "0")}  # whose numbers are those of other names


def table(*labels: Any, class_names: dict[str, tuple[str, ...]] | None = None) -> Table:
    places = [f"rows, line {number}" for number in range(len(labels))]
    return Table(places, {"label": list(labels)}, class_names or {})


def numbers(labels: Table, names: tuple[str, ...]) -> list[int | None]:
    """Each row's class, None where its label is hidden."""
    classes, known = class_numbers(labels, "label", names)
    return [int(number) if seen else None for number, seen in zip(classes, known, strict=True)]


def test_names_are_those_that_occur_numbers_by_their_size():
    assert find_names((10, "9", "b", True, "a", -1, "--5"), (), ()) == (
        *("-1", "9", "10", "--5", "True", "a", "b"),
    )
    assert find_names(("a", None, "", "b"), (), ()) == ("a", "b")
    assert find_names((0, 1), (), (0, 1)) == ("0", "1")
    assert find_names((0, 1), TFDS["label"], ()) == ("2", "1", "0")
    assert find_names((0, 1), TFDS["label"], ("x", "y", "z")) == ("x", "y", "z")


def test_labels_are_names_or_where_these_are_no_numbers_indices():
    assert numbers(table("b", "a", 1, 0), ("a", "b")) == [1, 0, 1, 0]
    assert numbers(table(1, "2", 4), ("1", "2", "4")) == [0, 1, 2]
    assert numbers(table(0, 1, 2, class_names=TFDS), TFDS["label"]) == [0, 1, 2]
    assert numbers(table(0, 1, class_names={"label": ("n", "p")}), ("minus", "plus")) == [0, 1]


@pytest.mark.parametrize("label", [3, 0, "3", 2.5, "-2"])
def test_a_number_that_is_no_name_is_no_index_of_names_that_are(label):
    with pytest.raises(UserError, match=f"line 1 has the label {label!r}, which training never"):
        numbers(table(1, label), ("1", "2", "4"))


def test_nothing_hides_a_label_and_minus_one_where_it_is_no_class():
    hidden = table("a", None, "", -1, "-1")
    assert numbers(hidden, ("a", "b")) == [0, None, None, None, None]
    assert numbers(table(-1, "-1", 0, 1), ("-1", "0", "1")) == [0, 0, 1, 2]
    assert numbers(table(-1, class_names=TFDS), TFDS["label"]) == [None]
    assert numbers(Table(["here"], {}, {}), ("a", "b")) == [None]


def test_sets_of_labels_are_lists_or_texts_and_of_tfds_numbers():
    assert label_sets(table("a| b", "", [], [2, "", "c"], None), "label", "|") == [
        *(["a", "b"], [], [], ["2", "c"], None),
    ]
    assert label_sets(table([0, 2], [1], class_names=TFDS), "label", "|") == [["2", "0"], ["1"]]
    with pytest.raises(UserError, match="line 0 has 3 in the column 'label', where a list"):
        label_sets(table(3), "label", "|")


def test_values_may_be_texts_and_so_may_the_one_that_hides():
    values, known = values_of(table("-1", -1.0, "2.5", 3, "", None), "label", hidden=-1.0)
    assert known.tolist() == [0, 0, 1, 1, 0, 0]
    np.testing.assert_array_equal(values[2:4], [2.5, 3])
    assert values_of(table("-1"), "label")[0].tolist() == [-1]
    for wrong in ("nan", "inf", "many", [1], 1e39):
        with pytest.raises(UserError, match="where a number should stand"):
            values_of(table(wrong), "label", hidden=-1.0)
