"""Ad slots: ads are shown in certain ranges of positions and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from pocketrank.device.strategies.base import Clash, Rule, Test, need
from pocketrank.device.strategies.facts import Facts
from pocketrank.device.strategies.spacing import Cap, MinGap

__all__ = ["AdSlots"]


@dataclass(frozen=True)
class AdSlots(Rule):
    """One ad in the positions `first` to `last`, one `every` positions later, and so on. The order decides where in the range.

    A slot demands its ad at its last position, or at an earlier one when rules of higher priority have pinned other items to
    the positions behind. An ad that they have pinned within the slot is the slot's ad. So a slot has its ad if, at the position
    where it is demanded, an ad is held that the rules of higher priority allow. Raises ValueError for slots that overlap.
    """

    first: int
    """Earliest position of the first ad, from 0."""
    last: int
    """Latest position of the first ad."""
    every: int
    """Positions from the start of one slot to the start of the next."""
    column: str = "ad"
    """Category that marks ads."""
    code: int | None = None
    """Code of ads in that category. None is every code except 0."""

    forces: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need(0 <= self.first <= self.last < self.first + self.every, "0 <= first <= last < first + every", self)

    def test(self, facts: Facts) -> Test | None:
        """See `Rule`."""
        codes, shown = facts.values(self.column), facts.shown(self.column)
        if codes is None:
            return None
        first, every, span, is_ad = self.first, self.every, self.last - self.first, self._is_ad
        ads = [is_ad(code) for code in codes]
        pinned = {position: ads[row] for position, row in facts.reserved.items() if self._in_slot(position)}

        @cache
        def plan(start: int) -> tuple[int, int]:
            """Return where an ad is pinned in the slot from `start`, or -1, and where an ad is demanded."""
            slot = range(start, start + span + 1)
            promised = next((position for position in slot if pinned.get(position)), -1)
            return promised, max((position for position in slot if position not in pinned), default=start + span)

        def allows(row: int, position: int) -> bool:
            offset = (position - first) % every
            start = position - offset
            if position < first or offset > span or any(map(is_ad, shown[start:])):
                return not ads[row]
            if not pinned:
                return ads[row] or offset < span
            promised, latest = plan(start)
            if position <= promised:
                return ads[row] == (position == promised)
            return ads[row] or position != latest

        return allows

    def clash(self, other: Rule) -> Clash | None:
        """Return how the slots conflict with other slots, gaps and caps of ads, which their numbers alone determine."""
        if isinstance(other, AdSlots) and (other.column, other.code) == (self.column, self.code):
            if other == self:
                return None
            shared = any(other._in_slot(position) for position in range(self.first, self.last + 1))
            return Clash(not shared, f"{self.name} and {other.name} allow ads in different places")
        if isinstance(other, MinGap | Cap) and other.column == self.column:
            if isinstance(other, Cap) and other.value is not None and not self._is_ad(other.value):
                return None
            max_items, within = (other.max_items, other.within) if isinstance(other, Cap) else (1, other.gap)
            span = self.last - self.first
            # The fewest and the most positions that max_items + 1 ads take up, the first and the last included.
            nearest, farthest = max_items * self.every - span + 1, max_items * self.every + span + 1
            if isinstance(within, int) and within < nearest:
                return None
            certain = max_items == 0 or within == "session" or (isinstance(within, int) and within >= farthest)
            # Gaps and caps hold for each code by itself, so ads of different codes may alternate.
            same = self.code is not None or (isinstance(other, Cap) and other.value is not None)
            return Clash(certain and same, f"{self.name} demands more ads than {other.name} allows")
        return super().clash(other)

    def _is_ad(self, code: float | None) -> bool:
        return code is not None and self.code in (None, code)

    def _in_slot(self, position: int) -> bool:
        return position >= self.first and (position - self.first) % self.every <= self.last - self.first
