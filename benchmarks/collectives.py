"""What a compiled program sends to other devices: its collectives, read from the optimised HLO text.

A collective inside a loop counts once per iteration. XLA states trip counts on some backends only. Elsewhere they are read from
the loop's condition, `counter < constant`. `jax.lax.scan` and `jax.lax.map` compile to this condition.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
ITEM_BYTES |= {f"{kind}{8 * size}": size for kind in "su" for size in (1, 2, 4, 8)}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast|send|recv"

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", re.MULTILINE)
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({KINDS})(-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_WHILE = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)(.*)")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=\{?((?:%?[\w.\-]+(?:, )?)+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"')
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_LESS_THAN = re.compile(r"^\s*ROOT .* compare\(.*?%?([\w.\-]+)\), direction=LT", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction: the arrays that each device has afterwards, and how often one run of the program executes it."""

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    executions: int

    @property
    def bytes(self) -> int:
        """Size of its arrays on one device."""
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in self.arrays)

    @property
    def dtype(self) -> str:
        """The element types of its arrays."""
        return "+".join(sorted({dtype for dtype, _ in self.arrays}))


def collectives(hlo: str) -> list[Collective]:
    """Every collective of a compiled program.

    Raises:
        ValueError: a loop does not say how often it runs.
    """
    found: list[Collective] = []
    for body, times in executions(hlo):
        for result, kind, started in _COLLECTIVE.findall(body):
            arrays = [(dtype, _shape(dims)) for dtype, dims in _ARRAY.findall(result) if dtype in ITEM_BYTES]
            if started and kind != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]  # operands, then results
            found.append(Collective(kind, tuple(arrays), times))
    return found


def executions(hlo: str) -> Iterator[tuple[str, int]]:
    """The text of every computation that the program calls, once per caller, with how often one run executes it.

    Every branch of a conditional counts as executed.
    """
    bodies = dict(_computations(hlo))
    pending = [("ENTRY", 1)]
    while pending:
        name, times = pending.pop()
        yield bodies[name], times
        for line in bodies[name].splitlines():
            if loop := _WHILE.search(line):
                condition, body, attributes = loop.groups()
                pending.append((body, times * _trip_count(bodies[condition], attributes, body)))
            elif "=%" in line or "={%" in line:
                called = ", ".join(_CALLED.findall(line)).replace("%", "").split(", ")
                pending.extend((callee, times) for callee in called if callee in bodies)


def _computations(hlo: str) -> Iterator[tuple[str, str]]:
    starts = list(_COMPUTATION.finditer(hlo))
    for match, following in zip(starts, [*starts[1:], None], strict=True):
        body = hlo[match.end() : following.start() if following else len(hlo)]
        yield ("ENTRY" if match[1] else match[2]), body


def _shape(dims: str) -> tuple[int, ...]:
    return tuple(int(n) for n in dims.split(",") if n)


def _trip_count(condition: str, attributes: str, body: str) -> int:
    if stated := _TRIP_COUNT.search(attributes):
        return int(stated[1])
    bound = _LESS_THAN.search(condition)
    constants = dict(_CONSTANT.findall(condition))
    if not bound or bound[1] not in constants:
        raise ValueError(f"loop {body}: expected a condition `counter < constant`, found:\n{condition}")
    return int(constants[bound[1]])
