"""Days of a log, and its split by time.

One rule says which day an impression belongs to: its `impression_ms` shifted by a whole number of hours from UTC. Real logs
here are KuaiRand's, whose days are those of UTC+8; a simulated world's are UTC's. (KuaiRand's own `date` column is not used:
near a full hour it disagrees with the time on about 1 % of the rows.)
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pocketrank.cloud.data.schema import DataError, ImpressionLog

__all__ = ["KUAIRAND_UTC_OFFSET_H", "day_of", "days", "empty_days", "split_by_time"]

KUAIRAND_UTC_OFFSET_H = 8
"""Hours that KuaiRand's local time is ahead of UTC."""

_HOUR_MS = 3_600_000
_EPOCH = date(1970, 1, 1)


def _offset(log: ImpressionLog, utc_offset_h: int | None) -> int:
    if utc_offset_h is not None:
        return utc_offset_h
    return 0 if log.simulated else KUAIRAND_UTC_OFFSET_H


def days(log: ImpressionLog, *, utc_offset_h: int | None = None) -> NDArray[np.int64]:
    """Day of each impression, counted from 1 January 1970 [impressions]; `day_of` makes a date of it.

    `utc_offset_h` is the hours that the days' time is ahead of UTC; None takes 0 for a simulated log, 8 for a real one.
    """
    times: NDArray[np.int64] = log.impressions["impression_ms"].to_numpy()
    return (times + _offset(log, utc_offset_h) * _HOUR_MS) // (24 * _HOUR_MS)


def day_of(index: int) -> date:
    """The date of a day index of `days`."""
    return _EPOCH + timedelta(days=index)


def empty_days(log: ImpressionLog, *, utc_offset_h: int | None = None) -> list[date]:
    """Days without an impression between the first and the last that have one, by the rule of `days`."""
    present = np.unique(days(log, utc_offset_h=utc_offset_h))
    if len(present) == 0:
        return []
    missing = np.setdiff1d(np.arange(present[0], present[-1]), present)
    return [day_of(int(index)) for index in missing]


def split_by_time(
    log: ImpressionLog, *, test_from: date, utc_offset_h: int | None = None
) -> tuple[ImpressionLog, ImpressionLog]:
    """The impressions before the day `test_from`, and those from it on, by the rule of `days`.

    Items, users and history are whole in both. A page goes where an impression of it is: to both sides when it was shown
    around midnight, to neither when nothing of it was shown. Raises `DataError` when a side would be empty.
    """
    index = days(log, utc_offset_h=utc_offset_h)
    late = index >= (test_from - _EPOCH).days
    if not late.any() or late.all():
        side = "train" if late.all() else "test"
        held = f"{day_of(int(index.min()))}..{day_of(int(index.max()))}" if len(index) else "no impressions"
        raise DataError(
            log.name, f"expected a day within the log to split at, got {test_from} with {held}: the {side} side is empty"
        )
    return _side(log, ~late), _side(log, late)


def _side(log: ImpressionLog, rows: NDArray[np.bool_]) -> ImpressionLog:
    impressions = log.impressions.filter(pa.array(rows))
    shown = pc.is_in(log.pages["page_id"], value_set=pc.unique(impressions["page_id"]).drop_null())
    return replace(log, impressions=impressions, pages=log.pages.filter(shown))
