"""Pins: items at fixed positions, which the app or the page names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pocketrank.device.strategies.base import Clash, Rule, Test, need
from pocketrank.device.strategies.facts import Facts

__all__ = ["PagePins", "Pin"]


@dataclass(frozen=True)
class Pin(Rule):
    """An item is shown at a position of the session and not earlier. The rule is relaxed if the item is not held then.

    Raises ValueError for a negative position.
    """

    item_id: int
    position: int
    """Position in the session, from 0."""

    forces: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need(self.position >= 0, "a position from 0", self.position)

    def test(self, facts: Facts) -> Test | None:
        """See `Rule`."""
        if facts.position > self.position:
            return None
        if self.item_id not in facts.item_ids:
            return lambda row, position: position != self.position
        return _placed(facts, {facts.item_ids.index(self.item_id): self.position})

    def clash(self, other: Rule) -> Clash | None:
        """Return a certain conflict of two pins that cannot both hold; pins otherwise never conflict."""
        if not isinstance(other, Pin):
            return super().clash(other)
        if (self.position == other.position) == (self.item_id == other.item_id):
            return None
        what = "two items at one position" if self.position == other.position else "one item at two positions"
        return Clash(True, f"{self.name} and {other.name} want {what}")


@dataclass(frozen=True)
class PagePins(Rule):
    """The page pins its items through a column: code k is the k-th impression after the page was taken, counted from 1.

    If two items have the same code, the first in the page's order has the position.
    """

    column: str = "pin"
    """Category of the page with the place of each item, 0 for an item that is not pinned."""

    forces: ClassVar[bool] = True

    def test(self, facts: Facts) -> Test | None:
        """See `Rule`."""
        places = facts.values(self.column)
        if places is None:
            return None
        due: dict[int, int] = {}
        for row, place in enumerate(places):
            at = facts.position + int(place) - 1 if place is not None and 0 < place < 2**31 else -1
            if at >= 0 and at not in due.values():
                due[row] = at
        return _placed(facts, due) if due else None


def _placed(facts: Facts, due: dict[int, int]) -> Test:
    """Return the test of rows that are `due` at positions, and reserve the positions that no rule of higher priority has."""
    at = {position: row for row, position in due.items()}
    facts.reserved = at | facts.reserved

    def allows(row: int, position: int) -> bool:
        return at[position] == row if position in at else due.get(row, -1) < position

    return allows
