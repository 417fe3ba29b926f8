"""What a session remembers for the policy that asks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pocketrank.device.contract import FeedbackEvent
from pocketrank.device.paging.base import PagingState

__all__ = ["TOP", "PagingMoment"]

TOP = 3
"""Values that `top` is the mean of: about what is shown before the next page can be there."""
_MEMORY = 0.8  # of `recent`, per impression: some five of them


class PagingMoment:
    """The part of `PagingState` that a session gathers as it goes. One for each session, not shared."""

    def __init__(self) -> None:
        self._best = self._top = self._arrived = self._recent = math.nan
        self._last: FeedbackEvent | None = None

    def page(self) -> None:
        """A page was taken: its values are not known yet."""
        self._best = self._top = self._arrived = math.nan

    def ranked(self, values: Sequence[float]) -> None:
        """The values of what would be shown next, in that order; none when they are not known."""
        first = values[:TOP]
        self._best, self._top = (first[0], sum(first) / len(first)) if first else (math.nan, math.nan)
        if self._arrived != self._arrived:
            self._arrived = self._top

    def feedback(self, event: FeedbackEvent, effective: float) -> None:
        """An impression ended; `effective` is 1 for an effective view, 0 for none, NaN when that is not known."""
        self._last = event
        if effective == effective:
            known = self._recent == self._recent
            self._recent = _MEMORY * self._recent + (1 - _MEMORY) * effective if known else effective

    def state(self, remaining: int, shown: int, age_ms: int, ttl_ms: int, compute_price: float, position: int) -> PagingState:
        """The state of now."""
        last = self._last
        return PagingState(
            remaining, shown, age_ms, ttl_ms, compute_price, self._best, self._top, self._arrived, position, self._recent,
            None if last is None else last.network, None if last is None else last.battery_saver,
        )  # fmt: skip
