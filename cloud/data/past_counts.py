"""Counts of all users' events before any moment of a span of days, for training (`features`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.features import Statistics
from pocketrank.cloud.time_zones import DAY_MS, day_start_ms, local_ms

__all__ = ["PastCounts"]

Int = NDArray[np.int64]
Counts = NDArray[np.float64]


class PastCounts:
    """The events of a span, and those of the days before it that the longest window still reaches, summed by item and day.

    Its memory is that of a span's events and of the items of so many days, and does not grow with the log.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics, self._days_max, self._time_zone = statistics, statistics.config.days_max, statistics.time_zone
        self._item, self._ms = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._values = np.zeros((0, statistics.width))
        self._times = self._ms
        self._index: dict[str, tuple[Int, Counts]] = {}

    def enter(self, item: Int, ms: Int, feedback: NDArray[np.float32]) -> None:
        """Go on to the events of the next span [E], whose days are later than all before, with feedback [E, F]."""
        self._forget_before(int(local_ms(ms.min(keepdims=True), self._time_zone)[0] // DAY_MS) - self._days_max + 1)
        self._item, self._ms = np.append(self._item, item), np.append(self._ms, ms)
        self._values = np.concatenate([self._values, self._statistics.values(feedback)])
        self._times = np.unique(self._ms)
        rank = np.searchsorted(self._times, self._ms)
        for key in self._statistics.config.shared:
            place = self._place(self._statistics.codes[key][self._item].astype(np.int64), rank)
            order = np.argsort(place, kind="stable")
            self._index[key] = (
                place[order],
                np.concatenate([np.zeros((1, self._statistics.width)), self._values[order].cumsum(0)]),
            )

    def between(self, key: str, code: NDArray[np.integer[Any]], since: Int, until: Int) -> Counts:
        """Return the counts [*b, width] of the events with each `code` [*b] from `since` [*b] up to, not at, `until` [*b].

        `since` is the beginning of a day, and `until` a moment of the span.
        """
        place, sums = self._index[key]
        first, end = (
            np.searchsorted(place, self._place(code.astype(np.int64), np.searchsorted(self._times, ms)))
            for ms in (since, until)
        )
        return np.where((code > 0)[..., None], sums[end] - sums[np.minimum(first, end)], 0.0)

    def _place(self, code: Int, rank: Int) -> Int:
        return code * (len(self._times) + 1) + rank

    def _forget_before(self, first_day: int) -> None:
        """Sum the events by item and day, without those of days before the first."""
        kept = self._ms >= day_start_ms(first_day, self._time_zone)
        item, ms, values = self._item[kept], self._ms[kept], self._values[kept]
        day = local_ms(ms, self._time_zone) // DAY_MS
        order = np.lexsort((ms, day, item))
        item, ms, day, values = item[order], ms[order], day[order], values[order]
        starts = np.flatnonzero(np.append(True, (item[1:] != item[:-1]) | (day[1:] != day[:-1]))[: len(item)])
        self._item, self._ms = item[starts], ms[starts]
        self._values = np.add.reduceat(values, starts) if len(starts) else values
