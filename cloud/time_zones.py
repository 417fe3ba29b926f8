"""Time of day in a time zone, for times far in the past and future, too.

Errors::

    TimeZoneError              no IANA time zone of this name
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

__all__ = ["DAY_MS", "HOUR_MS", "TimeZoneError", "day_start_ms", "hour_of", "local_ms", "zone_of"]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_QUARTER_MS = HOUR_MS // 4
"""Clocks are set back and ahead at full quarters of an hour in UTC."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class TimeZoneError(ValueError):
    """No IANA time zone of this name."""


@lru_cache(maxsize=8)
def zone_of(name: str) -> ZoneInfo:
    """Return the time zone. Raises `TimeZoneError`."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise TimeZoneError(f"Expected an IANA time zone such as `Europe/Berlin`, got `{name}`") from error


def local_ms(times: NDArray[np.int64], time_zone: str) -> NDArray[np.int64]:
    """Return what the clocks of the zone show at `times`, in milliseconds since their 1 January 1970. Raises `TimeZoneError`.

    `times` are milliseconds since the epoch. Clocks that are set back show an hour twice. Before year 1 and after year 9999
    they show UTC.
    """
    zone = zone_of(time_zone)
    quarters, place = np.unique(times // _QUARTER_MS, return_inverse=True)
    offsets = np.array([_offset_ms(int(quarter), zone) for quarter in quarters], np.int64)
    return np.asarray(times + offsets[place.reshape(times.shape)], np.int64)


def hour_of(ms: int, zone: ZoneInfo) -> int:
    """Return the hour of the day, 0 to 23, at a time in milliseconds since the epoch."""
    return (ms + _offset_ms(ms // _QUARTER_MS, zone)) // HOUR_MS % 24


@lru_cache(maxsize=1024)
def day_start_ms(day: int, time_zone: str) -> int:
    """Return when a day of the zone's calendar, counted from 1 January 1970, begins, in milliseconds since the epoch."""
    zone, utc = zone_of(time_zone), day * DAY_MS
    return utc - _offset_ms((utc - _offset_ms(utc // _QUARTER_MS, zone)) // _QUARTER_MS, zone)


@lru_cache(maxsize=1024)
def _offset_ms(quarter: int, zone: ZoneInfo) -> int:
    """Return by how much the zone is ahead of UTC in a quarter of an hour, counted from the epoch."""
    try:
        offset = (_EPOCH + quarter * _QUARTER_MS * _MS).astimezone(zone).utcoffset()
    except OverflowError:  # a year that `datetime` does not have
        return 0
    return 0 if offset is None else offset // _MS
