"""What a device tells of itself: sums over decisions and fallbacks, never a single event."""

from __future__ import annotations

import msgspec

from device.contract.wire import Versioned, Wire

__all__ = ["TelemetryReport", "Timing"]


class Timing(Wire, frozen=True, kw_only=True):
    """Times of one kind, in microseconds. `buckets[b]` counts those of 2^b up to 2^(b+1), the first also what is below."""

    count: int
    sum_us: int
    max_us: int
    buckets: tuple[int, ...] = ()


class TelemetryReport(Versioned, frozen=True, kw_only=True):
    """What a device counted from `since_ms` to `until_ms`. A `report_id` that comes twice counts once.

    `counters` and `timings` are by name; zeros are left out. `sample_rate` is the share of sessions that report, so that sums
    can be scaled up. `bundle` is `name/serial` of what was installed, `tier` what the device's self-benchmark chose.
    """

    report_id: str
    since_ms: int
    until_ms: int
    counters: dict[str, int] = msgspec.field(default_factory=dict)
    timings: dict[str, Timing] = msgspec.field(default_factory=dict)
    sample_rate: float = 1.0
    sdk: str | None = None
    bundle: str | None = None
    tier: str | None = None
