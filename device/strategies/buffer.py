"""Items that the player has loaded are shown next, so that no swipe waits for bytes and no bytes are wasted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pocketrank.device.strategies.base import Clash, Rule, Test
from pocketrank.device.strategies.facts import Facts

__all__ = ["KeepBuffered"]


@dataclass(frozen=True)
class KeepBuffered(Rule):
    """Items on screen or in the player's buffer (`Slate.buffered`) are shown next, in the buffer's order.

    Where a rule of higher priority puts another item first, they follow that item.
    """

    forces: ClassVar[bool] = True

    def test(self, facts: Facts) -> Test | None:
        """See `Rule`."""
        buffered = facts.buffered
        return lambda row, position: not buffered or row == next(iter(buffered))

    def clash(self, other: Rule) -> Clash | None:
        """Return None for another `KeepBuffered`, which holds the same items."""
        return None if isinstance(other, KeepBuffered) else super().clash(other)
