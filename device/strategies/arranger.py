"""Strategies together: which may contradict each other, and what each session shows by them.

The order in which rules are listed is their priority, highest first. At a position each candidate breaks some rules, and a rule
weighs more than all below it together: the candidate whose breaks weigh least is shown, of equal ones that which the order puts
first. So a rule is relaxed only where no candidate that is held keeps it together with the rules above that are kept there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from pocketrank.device.strategies.base import Clash, Preference, Rule
from pocketrank.device.strategies.slate import Slate

__all__ = ["Arranger", "Conflict"]


class Conflict(NamedTuple):
    """Two rules that may contradict each other; where they do, the winner is kept and the loser relaxed."""

    winner: str
    loser: str
    certain: bool
    """Whether they are bound to."""
    reason: str


class Arranger:
    """An app's strategies, shared by all its sessions and threads: keeps nothing of a session."""

    def __init__(self, strategies: Sequence[Rule | Preference]) -> None:
        """Rules by priority, highest first; preferences add up in any order."""
        self.rules = tuple(s for s in strategies if isinstance(s, Rule))
        self.preferences = tuple(s for s in strategies if isinstance(s, Preference))
        self.conflicts = tuple(
            Conflict(winner.name, loser.name, *clash)
            for winner, loser in combinations(self.rules, 2)
            if (clash := _clash(winner, loser)) is not None
        )
        """Told, not refused: which pairs may contradict each other, who wins, and why."""

    def start(self, position: int = 0) -> Slate:
        """What one session shows, from its impression `position` on."""
        return Slate(self.rules, self.preferences, position)


def _clash(a: Rule, b: Rule) -> Clash | None:
    found = [clash for clash in (a.clash(b), b.clash(a)) if clash is not None]
    return max(found, key=lambda clash: clash.certain, default=None)
