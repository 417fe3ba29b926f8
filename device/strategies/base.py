"""What a strategy is: rules say which candidates may be shown at a position, preferences shift the model's scores.

A strategy is a frozen config, shared by all sessions. When a page arrives it is asked once, with the session's `Facts`, for
what it does there: a rule gives a `Test`, a preference a `Bonus`, and either gives None where it has nothing to do, such as on
a page without its column. An app's own rule is one small class::

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
"""Whether the candidate in a row of the page may be shown at a position of the session, the next one. Runs for a few candidates
of each swipe."""


class Clash(NamedTuple):
    """Why two rules may contradict each other, and whether they are bound to."""

    certain: bool
    reason: str


class Bonus:
    """What a preference adds to each row of one page, [n], finite. It depends on what is shown where `show` is overridden."""

    def __init__(self, values: NDArray[np.floating[Any]]) -> None:
        self.values = values

    def show(self, row: int) -> None:
        """The candidate in `row` is shown. Must bind new arrays and not write into old ones: shallow copies look ahead."""


class Strategy:
    """Base of both kinds."""

    @property
    def name(self) -> str:
        """Names it in reports and counters."""
        values: list[str] = [str(getattr(self, f.name)) for f in fields(self)] if is_dataclass(self) else []
        return f"{type(self).__name__}({', '.join(values)})"


class Rule(Strategy, ABC):
    """Hard: holds at every position where some candidate allows it, and is relaxed where none does."""

    forces: ClassVar[bool] = False
    """Whether it may leave but a few candidates, which other rules may forbid."""

    @abstractmethod
    def test(self, facts: Facts) -> Test | None:
        """The rule on the page that arrived. Rules are asked in order of priority."""

    def clash(self, other: Rule) -> Clash | None:
        """How it may contradict `other`, as far as can be told before any page."""
        return Clash(False, f"{self.name} may demand what {other.name} forbids") if self.forces else None


class Preference(Strategy, ABC):
    """Soft: adds `weight` times its bonus to scores whose spread over the page, best to worst, is 1."""

    weight: float

    @abstractmethod
    def bonus(self, facts: Facts) -> Bonus | None:
        """The preference on the page that arrived."""


def need(holds: bool, expected: str, got: object) -> None:
    """Raise ValueError unless a config `holds`."""
    if not holds:
        raise ValueError(f"expected {expected}, got {got}")
