"""Default clock of the device's parts."""

from __future__ import annotations

import time

__all__ = ["wall_clock"]


def wall_clock() -> int:
    """Return the time in milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000
