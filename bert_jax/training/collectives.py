"""The collectives of a compiled program, counted in its optimised HLO.

XLA's own cost analysis counts a loop's body once and says nothing of communication, so the text is
read: every collective that the entry computation reaches, as often as it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

# `%name (parameters) -> type {` and `ENTRY %name ... {`, at the line's start.
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
# `  ROOT %name = type opcode(operands), attributes`; a type is one word or a tuple in parentheses.
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<opcode>[a-z][a-z\-]*)\("
    r"(?P<rest>.*)"
)
_ARRAY = re.compile(r"\b(pred|token|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# The compiler for TPUs writes a reduce-scatter as a fusion of this name around an all-reduce.
_FUSED_REDUCE_SCATTER = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of ``KINDS``.
      bytes: of the arrays that it reduces, gathers or moves, on one device: what goes in, or for an
        all-gather what comes out. What passes over the wires depends on the algorithm.
      count: how often it runs in one execution of the program: once, or once for each iteration of
        the loops that it stands in.
      source: the JAX operation that it comes from, as the compiler recorded it; may be empty.
    """

    kind: str
    bytes: int
    count: int
    source: str


@dataclasses.dataclass(frozen=True)
class Total:
    """All collectives of a kind: how many run, and their bytes added up."""

    count: int
    bytes: int


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: str
    attributes: str


def find_collectives(hlo: str) -> list[Collective]:
    """Lists the collectives that a program runs, in the text's order.

    A loop counts by its trip count, where the compiler noted it or the condition compares with a
    constant, as those of ``jax.lax.scan`` do; any other loop counts once.

    Args:
      hlo: optimised HLO of one device, as ``jax.stages.Compiled.as_text()`` gives it.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(hlo)
    types = {
        instruction.name: instruction.type
        for instructions in computations.values()
        for instruction in instructions
    }
    # An asynchronous collective may be spread over several fusions, all with its channel: one
    # starts it, one ends it, and between them a whole loop may help it along.
    found: dict[tuple[str, str], Collective] = {}
    for where, instruction, count in _reached(computations, entry, 1):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        if where.startswith(_FUSED_REDUCE_SCATTER):
            kind = "reduce-scatter"
        moved = sum(_bytes(types.get(name, "")) for name in _operand_names(instruction))
        if kind == "all-gather":
            # The asynchronous form's type holds its operands too.
            extra = moved if instruction.opcode.endswith("-start") else 0
            moved = _bytes(instruction.type) - extra
        channel = re.search(r"\bchannel_id=(\d+)", instruction.attributes)
        source = re.search(r'\bop_name="([^"]*)"', instruction.attributes)
        key = (kind, channel[0] if channel else instruction.name)
        once = Collective(kind, moved, count, source[1] if source else "")
        found[key] = min(once, found.get(key, once), key=lambda each: each.count)
    return list(found.values())


def total_by_kind(collectives: list[Collective]) -> dict[str, Total]:
    """Adds up what each kind of collective moves in one execution; absent kinds are left out."""
    totals: dict[str, Total] = {}
    for kind in KINDS:
        mine = [each for each in collectives if each.kind == kind]
        if mine:
            totals[kind] = Total(
                sum(each.count for each in mine), sum(each.count * each.bytes for each in mine)
            )
    return totals


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, and the name of the entry computation."""
    computations: dict[str, list[_Instruction]] = collections.defaultdict(list)
    entry = current = ""
    for line in hlo.splitlines():
        if started := _COMPUTATION.match(line):
            current = started["name"]
            entry = current if started["entry"] else entry
        elif matched := _INSTRUCTION.match(line):
            operands, attributes = _split_at_closing(matched["rest"])
            computations[current].append(
                _Instruction(
                    matched["name"], matched["type"], matched["opcode"], operands, attributes
                )
            )
    if not entry:
        raise ValueError("the text is no HLO module: it has no ENTRY computation")
    return computations, entry


def _split_at_closing(text: str) -> tuple[str, str]:
    """Splits at the parenthesis that closes the operands."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""


def _reached(
    computations: Mapping[str, list[_Instruction]], name: str, count: int
) -> Iterator[tuple[str, _Instruction, int]]:
    """Instructions that a computation runs: computation's name, instruction, how often."""
    for instruction in computations.get(name, []):
        yield name, instruction, count
        if instruction.opcode in KINDS:
            continue  # what it calls is the sum of two numbers
        times = _trips(computations, instruction) if instruction.opcode == "while" else 1
        for single, several in _CALLED.findall(instruction.attributes):
            for called in [single] if single else _REFERENCE.findall(several):
                yield from _reached(computations, called, count * times)


def _trips(computations: Mapping[str, list[_Instruction]], loop: _Instruction) -> int:
    """How often a loop's body runs; 1 where that cannot be told."""
    if known := _KNOWN_TRIPS.search(loop.attributes):
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)
    bounds = [
        int(instruction.operands)
        for instruction in computations.get(condition[1] if condition else "", [])
        if instruction.opcode == "constant" and re.fullmatch(r"\d+", instruction.operands)
    ]
    return bounds[0] if len(bounds) == 1 else 1


def _operand_names(instruction: _Instruction) -> list[str]:
    return _REFERENCE.findall(instruction.operands)


def _bytes(type_: str) -> int:
    """The bytes of an array, or of a tuple of arrays, without the layout's padding."""
    total = 0.0
    for name, bits, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", type_)):
        if name == "token":
            continue
        count = math.prod(int(size) for size in sizes.split(",") if size)
        total += count * (1 if name == "pred" else int(bits) / 8)
    return math.ceil(total)
