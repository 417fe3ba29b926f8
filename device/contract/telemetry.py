"""Telemetry of a device: sums over decisions and fallbacks, never a single event, an item or a user.

Every field is bounded, and a decoder rejects what is beyond the bounds: names become labels of the cloud's metrics, and a
device that is broken or hostile must not be able to create more labels than a cloud can hold.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from pocketrank.device.contract.wire import Versioned, Wire

__all__ = ["BUCKETS_MAX", "COUNT_MAX", "NAMES_MAX", "NAME_PATTERN", "SUM_MAX", "TEXT_MAX", "TelemetryReport", "Timing"]

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,47}(?!\n)$"
"""Pattern that the name of a counter or a timing must match."""
NAMES_MAX = 128
"""Most counters, and most timings, in a report. The SDK has about 40 and 5."""
BUCKETS_MAX = 24
"""Most buckets of a timing. The last one also counts everything above it, 8.4 seconds and more."""
COUNT_MAX = 1 << 30
"""Largest count in a report."""
SUM_MAX = 1 << 53
"""Largest sum of times in a report, in microseconds. Up to here a float64 adds exactly."""
TEXT_MAX = 64
"""Longest of any other text in a report, in characters."""

_Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
_Sum = Annotated[int, msgspec.Meta(ge=0, le=SUM_MAX)]
_Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]


class Timing(Wire, frozen=True, kw_only=True):
    """Histogram of times of one kind, in whole microseconds. Raises ValueError for figures that contradict one another."""

    count: _Count
    sum_us: _Sum
    max_us: _Sum
    buckets: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=BUCKETS_MAX)]
    """`buckets[b]` counts the times from 2^b up to 2^(b+1); the first also counts those below. Empty ones at the end are left
    out."""

    def __post_init__(self) -> None:
        if sum(self.buckets) != self.count or not self.max_us <= self.sum_us <= self.max_us * self.count:
            raise ValueError("expected buckets that add up to `count`, and a sum from `max_us` to `count` times that")


class TelemetryReport(Versioned, frozen=True, kw_only=True):
    """What a device counted from `since_ms` to `until_ms`, in milliseconds since the Unix epoch."""

    report_id: Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX)]
    """A report that arrives twice with the same id counts once."""
    since_ms: int
    until_ms: int
    counters: Annotated[dict[_Name, _Count], msgspec.Meta(max_length=NAMES_MAX)] = msgspec.field(default_factory=dict)
    """Counts by name. Zeros are left out."""
    timings: Annotated[dict[_Name, Timing], msgspec.Meta(max_length=NAMES_MAX)] = msgspec.field(default_factory=dict)
    """Histograms by name. Empty ones are left out."""
    sample_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Share of sessions that report, by which sums can be scaled up."""
    sdk: _Text | None = None
    bundle: _Text | None = None
    """`name/serial` of the installed bundle."""
    tier: _Text | None = None
    """The tier that the device's self-benchmark chose."""
