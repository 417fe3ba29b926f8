"""The clock by which feedback arrives: it goes on whatever the server's wall clock is set to."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

__all__ = ["OFF_MAX_MS", "TOLERANCE_MS", "ArrivalClock"]

OFF_MAX_MS = 30 * 86_400_000
"""Longest time since the last event in the log that a starting server takes from its wall clock: well above any pause of a
server in use, and well below a clock that is wrong by years."""

TOLERANCE_MS = 60_000
"""Time by which the clocks of phones and servers differ when both are right, together with the time of a request's way."""

# Goes on while the server is suspended; `time.monotonic` does not on Linux.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def _steady() -> float:
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class ArrivalClock:
    """Milliseconds since the epoch that never go back: the wall clock at the start, then the time that passes.

    It begins at the time `latest_ms` of the last event in the log, or up to `OFF_MAX_MS` later. Thread-safe.
    """

    def __init__(
        self,
        latest_ms: int | None = None,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] | None = None,
    ) -> None:
        """Both clocks are in seconds. Without `steady` it is that of the system, or `wall` if that is not the system's."""
        self._wall, self._lock = wall, Lock()
        self._source = steady or (_steady if wall is time.time else wall)
        self._last, self._now_s = self._source(), wall()
        if latest_ms is not None:
            self._now_s = min(max(self._now_s, latest_ms / 1e3), (latest_ms + OFF_MAX_MS) / 1e3)

    def __call__(self) -> int:
        """Return the time in ms."""
        with self._lock:
            last, self._last = self._last, self._source()
            self._now_s += max(0.0, self._last - last)
            return int(1e3 * self._now_s)

    def meet(self, told_ms: int) -> int:
        """Return the time in ms, which from here on is the wall clock's if that is ahead and a phone's clock says the same.

        Two clocks that agree are right: the server was off for longer than `OFF_MAX_MS`, or began with a clock that was behind.
        """
        now_ms, wall_ms = self(), self.wall_ms()
        if wall_ms <= now_ms or abs(told_ms - wall_ms) > TOLERANCE_MS:
            return now_ms
        with self._lock:
            self._now_s = wall_ms / 1e3
        return wall_ms

    def wall_ms(self) -> int:
        """Return the time in ms as the wall clock is set."""
        return int(1e3 * self._wall())
