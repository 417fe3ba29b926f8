"""Clocks of the device's parts.

A phone's wall clock is set back and ahead, by its user and by the network. It dates what leaves the device, and nothing else:
time that passes is measured by a clock that no setting changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

__all__ = ["DeviceClock", "OutboxClock", "SavedClock", "SteadyClock", "wall_clock"]

# These go on while the phone is suspended: the first on Linux and Android, the second on macOS and iOS, where
# `time.monotonic` stands still. Windows has neither, and there it goes on.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SET_MS = 2_000  # the network corrects a wall clock by less all the time
_OFF_MAX_MS = 30 * 86_400_000  # of a feed that is used; a clock that is set is usually wrong by years


class DeviceClock:
    """The clock of this device: a wall clock, and beside it one that no setting changes.

    The parts of one device are given the same clock. Override all three methods for another one.
    """

    def __call__(self) -> int:
        """Return the time in milliseconds since the epoch, UTC, as the wall clock is set."""
        return time.time_ns() // 1_000_000

    def since_boot_ms(self) -> int:
        """Return the milliseconds since the device was started. They go on while it is suspended."""
        return (time.monotonic_ns() if _CLOCK is None else time.clock_gettime_ns(_CLOCK)) // 1_000_000

    def boot(self) -> str | None:
        """Return a name of this start of the device, which no other has; None on systems that give it none."""
        try:
            return _BOOT_ID.read_text().strip() or None
        except (OSError, ValueError):
            return None


wall_clock = DeviceClock()
"""The clock of the system."""


class SteadyClock:
    """Milliseconds that begin with `wall` and then go on with the time that passes, whatever `wall` is set to.

    Beside a clock that is no `DeviceClock`, such as an app's or a simulation's, only the steps of `wall` itself are known:
    those ahead count as time that passed, those back as none.
    """

    def __init__(self, wall: Callable[[], int] = wall_clock) -> None:
        self._wall = wall
        self._source = wall.since_boot_ms if isinstance(wall, DeviceClock) else wall
        self._last, self._now = self._source(), wall()

    def __call__(self) -> int:
        """Return the time in ms. It never goes back."""
        last, self._last = self._last, self._source()
        self._now += max(0, self._last - last)
        return self._now

    def ahead_ms(self) -> int:
        """Return by how much this clock is ahead of `wall`: 0, unless `wall` was set while this clock went on."""
        return self() - self._wall()


class SavedClock(msgspec.Struct, frozen=True):
    """What an `OutboxClock` leaves for the next process."""

    boot: str | None
    ahead_of_boot_ms: int
    """By how much it is ahead of the time since that start of the device."""
    ahead_of_wall_ms: int


class OutboxClock:
    """Milliseconds by which the events of an outbox grow old, from one process to the next. Their zero has no meaning.

    While the device stays on, the time is exact, whatever the wall clock is set to. A restart of the device is bridged by the
    wall clock: the time that nobody measured, from the last event to the restart, is what that says, but 0 to 30 days. So it is
    exact unless the wall clock was set meanwhile, or that time is longer. Then it is wrong by at most that time, or by at most
    30 days if the clock was put ahead. Where the system does not name its starts (`DeviceClock.boot`), each start of a process
    counts as a restart.
    """

    def __init__(self, clock: DeviceClock = wall_clock, saved: SavedClock | None = None, latest_ms: int = 0) -> None:
        """Begin with the wall clock's time, or go on from `saved`, by which the last event was shown at `latest_ms`."""
        self._clock, boot, since_boot_ms, now_ms = clock, clock.boot(), clock.since_boot_ms(), clock()
        if saved is not None and saved.boot is not None and saved.boot == boot:
            now_ms = since_boot_ms + saved.ahead_of_boot_ms
        elif saved is not None:
            restarted = saved.boot is not None and boot is not None
            least_ms = latest_ms + (since_boot_ms if restarted else 0)
            now_ms = min(max(now_ms + saved.ahead_of_wall_ms, least_ms), least_ms + _OFF_MAX_MS)
        self._saved = SavedClock(boot, now_ms - since_boot_ms, now_ms - clock())

    def __call__(self) -> int:
        """Return the time in ms. It never goes back."""
        return self._clock.since_boot_ms() + self._saved.ahead_of_boot_ms

    def saved(self) -> SavedClock:
        """Return what the next process goes on from. It is another one once the wall clock was set."""
        ahead_ms = self() - self._clock()
        if abs(ahead_ms - self._saved.ahead_of_wall_ms) >= _SET_MS:
            self._saved = SavedClock(self._saved.boot, self._saved.ahead_of_boot_ms, ahead_ms)
        return self._saved
