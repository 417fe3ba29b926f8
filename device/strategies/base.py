"""Base classes of strategies: rules decide which candidates may be shown at a position, preferences shift the model's scores.

A strategy is a frozen config that all sessions share. When a page arrives, it is called once with the session's `Facts`. A rule
returns a `Test` and a preference a `Bonus` for the page; either returns None where it has no effect, as on a page without its
column. An app's own rule is one small class::

    @dataclass(frozen=True)
    class NoLongAfterLong(Rule):
        \"\"\"Two long videos never follow each other.\"\"\"

        long_ms: float = 60_000

        def test(self, facts: Facts) -> Test | None:
            duration, shown = facts.values("duration_ms"), facts.shown("duration_ms")
            if duration is None:
                return None
            long = [d is not None and d > self.long_ms for d in duration]
            return lambda row, position: not (long[row] and shown and (shown[-1] or 0) > self.long_ms)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.strategies.facts import Facts

__all__ = ["Bonus", "Clash", "Preference", "Rule", "Strategy", "Test", "need"]

Test: TypeAlias = Callable[[int, int], bool]
"""Whether the candidate in a row of the page may be shown at the session's next position. Called for a few candidates of each
swipe."""


class Clash(NamedTuple):
    """Whether two rules are certain to conflict, or only may, and why."""

    certain: bool
    reason: str


class Bonus:
    """Values [n] that a preference adds to the rows of one page. They are finite, and constant unless `show` is overridden."""

    def __init__(self, values: NDArray[np.floating[Any]]) -> None:
        self.values = values

    def show(self, row: int) -> None:
        """Update the values after the candidate in `row` was shown.

        An override must bind new arrays and must not write into the old ones, since shallow copies are used to look ahead.
        """


class Strategy:
    """Base of rules and preferences."""

    @property
    def name(self) -> str:
        """Name of the strategy in reports and counters, such as `MinGap(author, 3)`."""
        values: list[str] = [str(getattr(self, f.name)) for f in fields(self)] if is_dataclass(self) else []
        return f"{type(self).__name__}({', '.join(values)})"


class Rule(Strategy, ABC):
    """A hard strategy: it holds at every position where some candidate allows it, and is relaxed where none does."""

    forces: ClassVar[bool] = False
    """Whether it may demand one of a few candidates, which other rules may then forbid."""

    @abstractmethod
    def test(self, facts: Facts) -> Test | None:
        """Return the rule's test for the page that arrived. Rules are called in order of priority."""

    def clash(self, other: Rule) -> Clash | None:
        """Return how it may conflict with `other`, as far as their configs alone determine that."""
        return Clash(False, f"{self.name} may demand what {other.name} forbids") if self.forces else None


class Preference(Strategy, ABC):
    """A soft strategy: it adds `weight` times its bonus to scores that are scaled to a spread of 1 over the page."""

    weight: float

    @abstractmethod
    def bonus(self, facts: Facts) -> Bonus | None:
        """Return the preference's bonus for the page that arrived."""


def need(holds: bool, expected: str, got: object) -> None:
    """Raise ValueError that names `expected` and `got`, unless `holds`."""
    if not holds:
        raise ValueError(f"expected {expected}, got {got}")
