"""Graphs out of a graph: which operations a stage needs, and which of them are the body of a loop.

All stages of a model are traced and converted as one graph (`graphs.Stages`), in which what one stage hands on to the next is
an output and, once more, an input. A stage is what leads from its inputs to its outputs; where what is handed on is no input,
stages join. That takes a fraction of the time of tracing each graph by itself, and all of them share their weights.

An operation is known by its inputs and outputs, which may be any values: names in ONNX, numbers in LiteRT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Loop", "Operations"]

V = TypeVar("V")


@dataclass(frozen=True)
class Loop(Generic[V]):
    """Places of the operations before a loop, in its body and after it, in an order in which they can run."""

    before: list[int]
    body: list[int]
    after: list[int]
    captured: list[V]
    """What the body takes beside the state."""


class Operations(Generic[V]):
    """The operations of a graph, the inputs and outputs of each."""

    def __init__(self, operations: Sequence[tuple[Sequence[V], Sequence[V]]], handed: Mapping[V, V]) -> None:
        """`handed` tells for an input which output it stands for where it is not given."""
        self._operations, self._handed = operations, handed
        self._maker = {value: i for i, (_, outputs) in enumerate(operations) for value in outputs}

    def needed(self, wanted: Iterable[V], given: Collection[V]) -> list[int]:
        """Places of the operations that lead from `given` to `wanted`."""
        found: dict[int, None] = {}

        def visit(value: V) -> None:
            i = None if value in given else self._maker.get(self._handed.get(value, value))
            if i is not None and i not in found:
                for x in self._operations[i][0]:
                    visit(x)
                found[i] = None

        for value in wanted:
            visit(value)
        return list(found)

    def loop(self, wanted: Sequence[V], given: Collection[V], state: Mapping[V, tuple[V, V]], go: tuple[V, V]) -> Loop[V]:
        """The operations that lead from `given` to `wanted` when a loop lies between.

        `state` has for each value of the loop's state, which `wanted` are made of, the same before the loop and after a round;
        `go` is likewise whether there is a round more. What no state changes is computed once, before the loop, unless it comes
        from constants alone: a runtime prepares for a constant, which a value that is handed to a loop would not be.
        """
        given = {*given, *state}
        firsts, nexts = zip(*state.values(), go, strict=True)
        every = self.needed([*firsts, *nexts, *wanted], given)
        moving, varying = self._follow(every, state, given), self._follow(every, given, given)
        body = [i for i in self.needed(nexts, given) if i in moving or i not in varying]
        inside = {*state, *(value for i in body for value in self._operations[i][1])}
        captured = list(dict.fromkeys(v for i in body for v in self._meant(i, given) if v not in inside))
        before = [i for i in self.needed([*firsts, *wanted, *captured], given) if i not in moving]
        return Loop(before, body, [i for i in self.needed(wanted, given) if i in moving], captured)

    def _meant(self, i: int, given: Collection[V]) -> list[V]:
        """The inputs of an operation, those that are handed on replaced by what they stand for."""
        return [value if value in given else self._handed.get(value, value) for value in self._operations[i][0]]

    def _follow(self, order: Iterable[int], values: Iterable[V], given: Collection[V]) -> set[int]:
        """Those of the operations in `order` that depend on any of `values`."""
        reached, found = set(values), set()
        for i in order:
            if not reached.isdisjoint(self._meant(i, given)):
                found.add(i)
                reached.update(self._operations[i][1])
        return found
