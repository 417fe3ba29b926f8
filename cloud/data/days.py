"""Days of a log.

The day of an impression is that of its `impression_ms`, shifted by a whole number of hours from UTC. Real logs are those of
KuaiRand, with the days of UTC+8; a simulated world has the days of UTC. The `date` column of KuaiRand is not used, because near
a full hour it disagrees with the time on about 1 % of the rows.
"""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.schema import ImpressionLog

__all__ = ["KUAIRAND_UTC_OFFSET_H", "day_of", "days", "empty_days", "utc_offset_h"]

KUAIRAND_UTC_OFFSET_H = 8
"""Hours that KuaiRand's local time is ahead of UTC."""

_HOUR_MS = 3_600_000


def utc_offset_h(log: ImpressionLog) -> int:
    """Return the hours that the days of the log are ahead of UTC."""
    return 0 if log.simulated else KUAIRAND_UTC_OFFSET_H


def days(log: ImpressionLog) -> NDArray[np.int64]:
    """Return the day of each impression [impressions], counted from 1 January 1970; `day_of` returns its date."""
    times: NDArray[np.int64] = log.impressions["impression_ms"].to_numpy()
    return (times + utc_offset_h(log) * _HOUR_MS) // (24 * _HOUR_MS)


def day_of(index: int) -> date:
    """Return the date of a day as `days` counts them."""
    return date(1970, 1, 1) + timedelta(days=index)


def empty_days(log: ImpressionLog) -> list[date]:
    """Return the days without an impression between the first and the last day with one."""
    present = np.unique(days(log))
    if len(present) == 0:
        return []
    missing = np.setdiff1d(np.arange(present[0], present[-1]), present)
    return [day_of(int(index)) for index in missing]
