"""What a compiled step takes of a device's memory, and the largest batch that a memory holds."""

import dataclasses
from collections.abc import Callable

import jax

# Numbers of up to three binary digits, as batches are chosen: 1, 2, ..., 8, 10, 12, 14, 16, 20, ...
_MOST = 1 << 16
ROUND_NUMBERS = tuple(
    number for number in range(1, _MOST + 1) if number % (1 << max(0, number.bit_length() - 3)) == 0
)


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of one device's memory that a program needs, as the compiler planned it.

    Attributes:
      arguments: the state and the batch, with the padding of their layouts.
      outputs: what is returned in memory of its own; the state comes back where it was.
      temporaries: activations, gradients and all else that lives within a step.
      program: the code.
    """

    arguments: int
    outputs: int
    temporaries: int
    program: int

    @property
    def used(self) -> int:
        """All of it together."""
        return self.arguments + self.outputs + self.temporaries + self.program


def footprint(compiled: jax.stages.Compiled) -> Footprint | None:
    """The memory that a program needs of each device; None where the compiler does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return Footprint(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
    )


def out_of_memory(error: jax.errors.JaxRuntimeError) -> str | None:
    """The compiler's first sentences, if it refused a program as too large; None otherwise."""
    text = str(error)
    return text.splitlines()[0] if "RESOURCE_EXHAUSTED" in text else None


def largest_batch(
    used: Callable[[int], int | None], available: int, *, fixed: int, first: int
) -> int:
    """Searches the largest round number of examples whose step fits, in few compilations.

    Memory grows about linearly with the batch, so that two measurements tell where to look; the
    answer and the round number above it are both tried.

    Args:
      used: compiles the step for so many examples on a device; bytes, or None if it was refused.
      available: bytes of a device.
      fixed: bytes that do not depend on the batch, as far as is known: those of the state.
      first: a number to begin with.

    Returns:
      A number of ``ROUND_NUMBERS``; 0 if a single example does not fit.
    """
    points = [(0, fixed)]  # measurements, the last two of which make a line
    fits, refused = -1, len(ROUND_NUMBERS)  # places that are known to
    place = _place_up_to(first)
    while refused - fits > 1:
        number = ROUND_NUMBERS[place]
        needed = used(number)
        if needed is not None and number > points[-1][0]:
            points.append((number, needed))
        if needed is not None and needed <= available:
            fits = place
        else:
            refused = place
        place = (fits + refused) // 2
        if len(points) > 1:
            (n0, bytes0), (n1, bytes1) = points[-2:]
            slope = max((bytes1 - bytes0) / (n1 - n0), 1.0)
            place = _place_up_to(n1 + (available - bytes1) / slope)
        place = min(max(place, fits + 1), refused - 1)
    return ROUND_NUMBERS[fits] if fits >= 0 else 0


def _place_up_to(number: float) -> int:
    """The place of the largest round number that is not larger; 0 if there is none."""
    return max(sum(1 for each in ROUND_NUMBERS if each <= number) - 1, 0)
