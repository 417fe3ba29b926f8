"""What the player has loaded comes next, so that no swipe waits for bytes and none are thrown away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pocketrank.device.strategies.base import Clash, Rule, Test
from pocketrank.device.strategies.facts import Facts

__all__ = ["KeepBuffered"]


@dataclass(frozen=True)
class KeepBuffered(Rule):
    """What is on screen or buffered (`Slate.buffered`) is shown next, in its order.

    Where a rule of higher priority puts another item before it, it comes after that one.
    """

    forces: ClassVar[bool] = True

    def test(self, facts: Facts) -> Test | None:
        """See `Rule`."""
        buffered = facts.buffered
        return lambda row, position: not buffered or row == next(iter(buffered))

    def clash(self, other: Rule) -> Clash | None:
        """One buffer is kept once."""
        return None if isinstance(other, KeepBuffered) else super().clash(other)
