"""Which examples a task learns from, and on which it is validated."""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import ml_collections
import numpy as np

from bert_jax.data.randomness import permutation
from bert_jax.errors import UserError

Part = TypeVar("Part")
Example = TypeVar("Example")


def read_parts(
    data: ml_collections.ConfigDict,
    split: str,
    read: Callable[[str], Part],
    join: Callable[[Sequence[Part]], Part],
    divide: Callable[[Part, float], tuple[Part, Part]],
) -> list[Part]:
    """The parts of a split, one for each of the names, separated by commas, that the config gives.

    Without a name for validation, a share of the training examples is kept apart for it.

    Args:
      data: ``train``, ``validation`` and ``validation_share``.
      split: ``train``, which is always one part, or ``validation``.
      read: reads what a name stands for.
      join: makes one part of several.
      divide: divides a part into what is learnt from and the share that is not.

    Raises:
      UserError: the config names no data, or they cannot be read.
    """

    def named(which: str) -> list[Part]:
        names = [name.strip() for name in str(data[which]).split(",") if name.strip()]
        if not names:
            purpose = "to learn from" if which == "train" else "to validate on"
            raise UserError(f"there are no data {purpose}; give --config.data.{which}=FILE")
        return [read(name) for name in names]

    if split == "validation" and data.validation:
        return named("validation")
    if data.validation or (split == "train" and not data.validation_share):
        return [join(named("train"))]
    if not data.validation_share:
        raise UserError(
            "there are no data to validate on; give --config.data.validation=FILE, or "
            "--config.data.validation_share=0.1 to keep some of the training rows apart"
        )
    learnt, kept = divide(join(named("train")), data.validation_share)
    return [learnt if split == "train" else kept]


def read_examples(
    data: ml_collections.ConfigDict,
    split: str,
    read: Callable[[str], list[Example]],
    group: Callable[[Example], Hashable],
) -> list[Example]:
    """The examples of a split; as ``read_parts``, but that several parts are joined.

    Args:
      data: ``train``, ``validation`` and ``validation_share``.
      split: ``train`` or ``validation``.
      read: reads what a name stands for.
      group: names what an example is part of; groups are not divided between the splits.

    Raises:
      UserError: the config names no data, they cannot be read, or there is no example.
    """

    def join(parts: Sequence[list[Example]]) -> list[Example]:
        return list(itertools.chain.from_iterable(parts))

    def divide(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
        numbers: dict[Hashable, int] = {}
        groups = [numbers.setdefault(group(example), len(numbers)) for example in examples]
        apart = choose_apart(len(numbers), share)[groups].tolist()
        return (
            list(itertools.compress(examples, (not kept for kept in apart))),
            list(itertools.compress(examples, apart)),
        )

    examples = join(read_parts(data, split, read, join, divide))
    if not examples:
        name = data[split] or data.train
        raise UserError(f"{name} has no examples; give others with --config.data.{split}=FILE")
    return examples


def choose_apart(count: int, share: float) -> np.ndarray:
    """Which of ``count`` rows to keep apart: bool [count]. It depends on the two numbers alone.

    Raises:
      UserError: there would be nothing left.
    """
    if not 0 < share < 1:
        raise UserError(f"data.validation_share={share} is no share; give one between 0 and 1")
    apart = np.zeros(count, bool)
    apart[permutation(0, "validation rows", 0, count)[: math.ceil(share * count)]] = True
    if apart.all():
        raise UserError("there are too few training rows to keep some apart; give more of them")
    return apart
