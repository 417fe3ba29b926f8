"""Spacing: how close together and how often items of one author, source, category or other attribute are shown.

Both rules look back over everything that was shown, earlier pages included. Items whose attribute is unknown are always
allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pocketrank.device.strategies.base import Rule, Test, need
from pocketrank.device.strategies.facts import Facts

__all__ = ["Cap", "MinGap"]


@dataclass(frozen=True)
class MinGap(Rule):
    """Items of one value are at least `gap` positions apart: 2 keeps them from being neighbours.

    Raises ValueError for a gap below 1.
    """

    column: str
    """Attribute such as `author`, `source` or `category`."""
    gap: int
    """Smallest distance in positions."""

    def __post_init__(self) -> None:
        need(self.gap >= 1, "a gap from 1", self.gap)

    def test(self, facts: Facts) -> Test | None:
        """See `Rule`."""
        return _at_most(facts, self.column, 1, self.gap)


@dataclass(frozen=True)
class Cap(Rule):
    """At most `max_items` items of one value in a number of consecutive positions, since the page was taken, or in the session.

    Raises ValueError for numbers out of range.
    """

    column: str
    """Attribute such as `author`, `source` or `category`."""
    max_items: int
    """Most items of one value."""
    within: int | Literal["page", "session"] = "page"
    """Number of consecutive positions, or all positions since the page was taken, or those of the session. The page is the
    default, since a cap in the cloud can cover a page too."""
    value: int | None = None
    """The only code that is capped. None caps every code."""

    def __post_init__(self) -> None:
        need(self.max_items >= 0, "a cap from 0", self.max_items)
        known = self.within >= 1 if isinstance(self.within, int) else self.within in ("page", "session")
        need(known, "positions from 1, `page` or `session`", self.within)

    def test(self, facts: Facts) -> Test | None:
        """See `Rule`."""
        return _at_most(facts, self.column, self.max_items, self.within, self.value)


def _at_most(
    facts: Facts, column: str, max_items: int, within: int | Literal["page", "session"], only: int | None = None
) -> Test | None:
    values, shown = facts.values(column), facts.shown(column)
    if values is None:
        return None
    if only is not None:
        values = [value if value == only else None for value in values]
    if within == "session":
        counts = facts.counts(column)
        return lambda row, position: values[row] is None or counts[values[row]] < max_items
    if within == "page":
        start = facts.position
        return lambda row, position: (value := values[row]) is None or shown[start:].count(value) < max_items
    return lambda row, position: (
        (value := values[row]) is None or shown[max(0, position + 1 - within) :].count(value) < max_items
    )
