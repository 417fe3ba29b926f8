"""Clocks of the device's parts.

A phone's wall clock is set back and ahead, by its user and by the network. It dates what leaves the device, and nothing else:
time that passes is measured by a clock that no setting changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SteadyClock", "wall_clock"]

# These go on while the phone is suspended: the first on Linux and Android, the second on macOS and iOS, where
# `time.monotonic` stands still. Windows has neither, and there it goes on.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def wall_clock() -> int:
    """Return the time in milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def _since_boot() -> int:
    return (time.monotonic_ns() if _CLOCK is None else time.clock_gettime_ns(_CLOCK)) // 1_000_000


class SteadyClock:
    """Milliseconds that begin with `wall` and then go on with the time that passes, whatever `wall` is set to.

    Beside another clock than `wall_clock`, such as an app's or a simulation's, only the steps of `wall` itself are known: those
    ahead count as time that passed, those back as none.
    """

    def __init__(self, wall: Callable[[], int] = wall_clock) -> None:
        self._wall = wall
        self._source = _since_boot if wall is wall_clock else wall
        self._last, self._now = self._source(), wall()

    def __call__(self) -> int:
        """Return the time in ms. It never goes back."""
        last, self._last = self._last, self._source()
        self._now += max(0, self._last - last)
        return self._now

    def ahead_ms(self) -> int:
        """Return by how much this clock is ahead of `wall`: 0, unless `wall` was set while this clock went on."""
        return self() - self._wall()
