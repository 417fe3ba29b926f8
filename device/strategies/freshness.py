"""Freshness: a head start for new items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pocketrank.device.strategies.base import Bonus, Preference, need
from pocketrank.device.strategies.facts import Facts

__all__ = ["Freshness"]


@dataclass(frozen=True)
class Freshness(Preference):
    """A bonus of `weight` for an item of age 0, half of it at the age `half_life`, and none for an item of unknown age.

    Raises ValueError for numbers out of range.
    """

    half_life: float
    """In the unit of the column."""
    column: str = "age"
    """Attribute with the age. A negative age counts as 0."""
    weight: float = 0.1
    """A tenth of the way from the worst candidate to the best. Not measured: the value of new items is the app's decision."""

    def __post_init__(self) -> None:
        need(0 < self.half_life < np.inf and 0 <= self.weight < np.inf, "a half life above 0 and a weight from 0", self)

    def bonus(self, facts: Facts) -> Bonus | None:
        """See `Preference`."""
        ages = facts.values(self.column)
        if ages is None:
            return None
        known = np.array([np.inf if age is None else max(0.0, age) for age in ages])
        return Bonus(np.exp2(-known / self.half_life))
