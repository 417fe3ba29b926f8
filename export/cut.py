"""Selection of a stage's operations from a graph with all stages, and of the body of its loop.

All stages of a model are traced and converted as one graph (`graphs.Stages`). In it, a value that one stage passes to the next
is both an output of the one and an input of the other. A stage consists of the operations between its inputs and its outputs.
Where a passed value is not given as an input, it stands for the output, so that stages join. This takes a fraction of the time
of tracing each stage by itself, and all stages share their weights.

An operation is a pair of its inputs and its outputs. They may be values of any type: names in ONNX, numbers in LiteRT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Loop", "Operations"]

V = TypeVar("V")


@dataclass(frozen=True)
class Loop(Generic[V]):
    """Indices of the operations before a loop, in its body and after it, in an order in which they can run."""

    before: list[int]
    body: list[int]
    after: list[int]
    captured: list[V]
    """Values that the body takes besides the state."""


class Operations(Generic[V]):
    """The operations of a graph, the inputs and outputs of each."""

    def __init__(self, operations: Sequence[tuple[Sequence[V], Sequence[V]]], links: Mapping[V, V]) -> None:
        """`links` maps an input to the output that it stands for where it is not given."""
        self._operations, self._links = operations, links
        self._maker = {value: i for i, (_, outputs) in enumerate(operations) for value in outputs}

    def needed(self, wanted: Iterable[V], given: Collection[V]) -> list[int]:
        """Return the indices of the operations that compute `wanted` from `given`, in an order in which they can run."""
        found: dict[int, None] = {}

        def visit(value: V) -> None:
            i = None if value in given else self._maker.get(self._links.get(value, value))
            if i is not None and i not in found:
                for x in self._operations[i][0]:
                    visit(x)
                found[i] = None

        for value in wanted:
            visit(value)
        return list(found)

    def loop(self, wanted: Sequence[V], given: Collection[V], state: Mapping[V, tuple[V, V]], go: tuple[V, V]) -> Loop[V]:
        """Return the operations that compute `wanted` from `given` through a loop.

        `state` maps each value of the loop's state, from which `wanted` is computed, to its values before the loop and after
        one more round; `go` is that pair for the flag whether there is another round. Operations that do not depend on the
        state run once, before the loop, unless they depend on constants only: those stay in the body, because a runtime
        prepares constants ahead, but not values that are passed to a loop.
        """
        given = {*given, *state}
        # `moving` operations depend on the state, `varying` ones on any input: the rest depends on constants only.
        firsts, nexts = zip(*state.values(), go, strict=True)
        every = self.needed([*firsts, *nexts, *wanted], given)
        moving, varying = self._follow(every, state, given), self._follow(every, given, given)
        body = [i for i in self.needed(nexts, given) if i in moving or i not in varying]
        # The body captures the values that it uses and does not compute.
        inside = {*state, *(value for i in body for value in self._operations[i][1])}
        captured = list(dict.fromkeys(v for i in body for v in self._resolved(i, given) if v not in inside))
        before = [i for i in self.needed([*firsts, *wanted, *captured], given) if i not in moving]
        return Loop(before, body, [i for i in self.needed(wanted, given) if i in moving], captured)

    def _resolved(self, i: int, given: Collection[V]) -> list[V]:
        """Return the inputs of an operation, each that is not given replaced by the output that it stands for."""
        return [value if value in given else self._links.get(value, value) for value in self._operations[i][0]]

    def _follow(self, order: Iterable[int], values: Iterable[V], given: Collection[V]) -> set[int]:
        """Return those of the operations in `order` that depend on any of `values`."""
        reached, found = set(values), set()
        for i in order:
            if not reached.isdisjoint(self._resolved(i, given)):
                found.add(i)
                reached.update(self._operations[i][1])
        return found
