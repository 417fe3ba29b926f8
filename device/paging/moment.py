"""Record of a session for its paging policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pocketrank.device.contract import FeedbackEvent
from pocketrank.device.paging.base import PagingState

__all__ = ["TOP", "PagingMoment"]

TOP = 3
"""Number of values in the mean `top`: about as many items as are shown before the next page can arrive."""
_MEMORY = 0.8  # share of `recent` that stays after an impression: a memory of some five


class PagingMoment:
    """The part of `PagingState` that accumulates over a session. Each session has its own."""

    def __init__(self) -> None:
        self._best = self._top = self._arrived = self._recent = math.nan
        self._last: FeedbackEvent | None = None

    def page(self) -> None:
        """Record that a page was taken, whose values are not known yet."""
        self._best = self._top = self._arrived = math.nan

    def ranked(self, values: Sequence[float]) -> None:
        """Record the values of the items that would be shown next, in that order. Empty if they are unknown."""
        first = values[:TOP]
        self._best, self._top = (first[0], sum(first) / len(first)) if first else (math.nan, math.nan)
        if math.isnan(self._arrived):
            self._arrived = self._top

    def feedback(self, event: FeedbackEvent, effective: float) -> None:
        """Record a finished impression. `effective` is 1 for an effective view, 0 for none, NaN if that is unknown."""
        self._last = event
        if not math.isnan(effective):
            first = math.isnan(self._recent)
            self._recent = effective if first else _MEMORY * self._recent + (1 - _MEMORY) * effective

    def state(self, remaining: int, shown: int, age_ms: int, ttl_ms: int, compute_price: float, position: int) -> PagingState:
        """Return the state for the policy, from this record and the session's own figures."""
        last = self._last
        return PagingState(
            remaining, shown, age_ms, ttl_ms, compute_price, self._best, self._top, self._arrived, position, self._recent,
            None if last is None else last.network, None if last is None else last.battery_saver,
        )  # fmt: skip
