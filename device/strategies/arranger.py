"""An app's strategies as one configuration, from which each session starts.

Rules are listed by priority, highest first. At a position each candidate breaks some of the rules, and a rule weighs more than
all rules below it together. The candidate whose broken rules weigh least is shown; among equals, the one that the order puts
first. So a rule is relaxed only where no held candidate keeps it together with the rules above it that are kept there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from pocketrank.device.strategies.base import Clash, Preference, Rule
from pocketrank.device.strategies.slate import Slate

__all__ = ["Arranger", "Conflict"]


class Conflict(NamedTuple):
    """Two rules that may conflict. Where they do, the winner is kept and the loser is relaxed."""

    winner: str
    loser: str
    certain: bool
    """Whether they are certain to conflict."""
    reason: str


class Arranger:
    """An app's strategies. All its sessions and threads share them; nothing of a session is kept here."""

    def __init__(self, strategies: Sequence[Rule | Preference]) -> None:
        """Rules are in order of priority, highest first. Preferences add up, so their order does not matter."""
        self.rules = tuple(s for s in strategies if isinstance(s, Rule))
        self.preferences = tuple(s for s in strategies if isinstance(s, Preference))
        self.conflicts = tuple(
            Conflict(winner.name, loser.name, *clash)
            for winner, loser in combinations(self.rules, 2)
            if (clash := _clash(winner, loser)) is not None
        )
        """Pairs of rules that may conflict, with the winner and the reason. They are reported, not rejected."""

    def start(self, position: int = 0) -> Slate:
        """Return the slate of one session, which begins at its impression `position`."""
        return Slate(self.rules, self.preferences, position)


def _clash(a: Rule, b: Rule) -> Clash | None:
    found = [clash for clash in (a.clash(b), b.clash(a)) if clash is not None]
    return max(found, key=lambda clash: clash.certain, default=None)
