"""How close and how often items of one source, author, category or any other attribute may come.

Both rules look back over what was shown, also of earlier pages. Items whose attribute is unknown are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pocketrank.device.strategies.base import Rule, Test, need
from pocketrank.device.strategies.facts import Facts

__all__ = ["Cap", "MinGap"]


@dataclass(frozen=True)
class MinGap(Rule):
    """Items of one value are at least `gap` positions apart: 2 keeps them from being neighbours. Raises ValueError."""

    column: str
    """attribute: `author`, `source`, `category`, .."""
    gap: int
    """least distance in positions"""

    def __post_init__(self) -> None:
        need(self.gap >= 1, "a gap from 1", self.gap)

    def test(self, facts: Facts) -> Test | None:
        """See `Rule`."""
        return _at_most(facts, self.column, 1, self.gap)


@dataclass(frozen=True)
class Cap(Rule):
    """At max_items so many items of one value in any so many positions, of a page, or of the session. Raises ValueError."""

    column: str
    """attribute: `author`, `source`, `category`, .."""
    max_items: int
    """items of one value"""
    within: int | Literal["page", "session"] = "page"
    """Consecutive positions that are looked at; `page` are those since the page was taken. The page is the default since that
    is what a cap in the cloud can hold too."""
    value: int | None = None
    """The only code that is capped; None caps each."""

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
