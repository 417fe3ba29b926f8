"""Counts of all users' events by day, which go on from those of the training while feedback arrives
(`pocketrank.cloud.data.features`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.features import Statistics
from pocketrank.cloud.published.published import PublishedFeatures

__all__ = ["LiveCounts", "SavedCounts"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]


class SavedCounts(msgspec.Struct, frozen=True, array_like=True):
    """The counts of a day by one key, of the c codes that have any."""

    key: str
    day: int
    code: bytes
    """[c] int64"""
    counts: bytes
    """[c, width] float32"""


class _Day:
    """The counts of a day by one key. What was never counted takes no memory, because it was never written to."""

    def __init__(self, codes: int, width: int) -> None:
        self.counts = np.zeros((codes, width), np.float32)
        self.touched = set[int]()

    def add(self, code: Int, values: Float) -> None:
        if (last := int(code.max(initial=0))) >= len(self.counts):  # of an item that was put since
            more = max(last + 1 - len(self.counts), len(self.counts) // 4)
            self.counts = np.concatenate([self.counts, np.zeros((more, self.counts.shape[1]), np.float32)])
        self.touched.update(code.tolist())
        np.add.at(self.counts, code, values)


class LiveCounts:
    """Counts of the days of the longest window, up to the newest day of any event. Calls of `add` must follow one another."""

    def __init__(
        self, published: Mapping[str, NDArray[np.float32]], features: PublishedFeatures, statistics: Statistics
    ) -> None:
        """`published` are the counts of the training (`Published.counts`)."""
        self._statistics, self._until_ms = statistics, features.until_ms
        self._days_max = statistics.config.days_max
        self._published = {key: np.asarray(counts) for key, counts in published.items()}
        self._slot = {day: slot for slot, day in enumerate(features.days)}
        self._live: dict[int, dict[str, _Day]] = {}
        self.newest_day = max(features.days)
        """Day of the newest event, in days of the run's time zone since 1 January 1970."""

    def add(self, item: Int, ms: Int, feedback: Float) -> None:
        """Count events [e] of items at these positions, 0 = unknown, with feedback [e, F].

        Those that the training has counted are left out, and so are those from before the longest window.
        """
        by_day = self._by_day(item, ms, feedback)
        self._go_on_to(max((self.newest_day, *by_day)))
        for day, (of_day, values) in by_day.items():
            if day > self.newest_day - self._days_max:
                for key, of_key in self._day(day).items():
                    of_key.add(self._statistics.codes[key][of_day].astype(np.int64), values)

    def remove(self, item: Int, ms: Int, feedback: Float) -> None:
        """Take out events that were added."""
        for day, (of_day, values) in self._by_day(item, ms, feedback).items():
            for key, of_key in self._live.get(day, {}).items():
                np.subtract.at(of_key.counts, self._statistics.codes[key][of_day], values)

    def _by_day(self, item: Int, ms: Int, feedback: Float) -> dict[int, tuple[Int, Float]]:
        """Return by day the items and what is counted of those events that the training has not counted."""
        new = (ms > self._until_ms) & (item > 0)
        item, day, values = item[new], self._statistics.day(ms[new]), self._statistics.values(feedback[new])
        return {one: (item[day == one], values[day == one]) for one in np.unique(day).tolist()}

    def as_of(self, now_ms: int) -> Callable[[str, int, NDArray[np.integer[Any]]], Float]:
        """Return a function of key, days and codes [*b] that returns the counts [*b, width] of a window.

        It ends with the day of a request, or of the newest event.
        """
        last = max(self.newest_day, int(self._statistics.day(np.array(now_ms))))

        def counts(key: str, days: int, code: NDArray[np.integer[Any]]) -> Float:
            total = np.zeros((*code.shape, self._statistics.width), np.float32)
            for day in range(last - days + 1, last + 1):
                if (slot := self._slot.get(day)) is not None:
                    total += _counts_of(self._published[key][slot], code)
                if (live := self._live.get(day)) is not None:
                    total += _counts_of(live[key].counts, code)
            return np.where((code > 0)[..., None], total, np.float32(0))

        return counts

    def copy(self) -> list[SavedCounts]:
        """Return what was counted since the training."""
        saved = []
        for day, by_key in self._live.items():
            for key, of_key in by_key.items():
                code = np.array(sorted(of_key.touched), np.int64)
                saved.append(SavedCounts(key, day, code.tobytes(), of_key.counts[code].tobytes()))
        return saved

    def restore(self, saved: Sequence[SavedCounts]) -> None:
        """Replace what was counted since the training by a `copy` of this run's."""
        self._live = {}
        for one in saved:
            values = np.frombuffer(one.counts, np.float32).reshape(-1, self._statistics.width)
            self._day(one.day)[one.key].add(np.frombuffer(one.code, np.int64), values)
        self._go_on_to(max((self.newest_day, *self._live)))

    def fingerprint(self) -> bytes:
        """Return what a `copy` depends on beside the events."""
        return repr((self._statistics.config, self._until_ms, sorted(self._slot), self._statistics.time_zone)).encode()

    def _day(self, day: int) -> dict[str, _Day]:
        if day not in self._live:
            codes = self._statistics.codes
            sizes = {key: int(codes[key].max(initial=0)) + 1 for key in self._statistics.config.shared}
            self._live[day] = {key: _Day(size, self._statistics.width) for key, size in sizes.items()}
        return self._live[day]

    def _go_on_to(self, day: int) -> None:
        self.newest_day = day
        for old in [one for one in self._live if one <= day - self._days_max]:
            del self._live[old]


def _counts_of(counts: Float, code: NDArray[np.integer[Any]]) -> Float:
    """Return the counts [*b, width] of codes [*b], of which later ones than these have none."""
    if int(code.max(initial=0)) < len(counts):
        return counts.take(code, 0)
    inside = code < len(counts)
    return np.where(inside[..., None], counts.take(np.where(inside, code, 0), 0), np.float32(0))
