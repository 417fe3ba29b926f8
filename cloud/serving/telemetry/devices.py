"""Telemetry that devices report, summed up for Prometheus.

::

    pocketrank_device_reports_total{result, sample_rate, tier, bundle}     accepted, duplicate or bad
    pocketrank_device_counts_total{name}                                   decisions and fallbacks
    pocketrank_device_seconds{name}                                        a histogram, with the devices' own buckets

The sums cover the devices that report; nothing is scaled up. A report is counted once by its id, within the ids that this
process remembers. Another worker does not know them, so a report that is sent again to another worker counts twice, which is
accurate enough for a picture of the fleet. The sums of several workers are added up, and each worker keeps the bounds for
itself. A report that violates the contract is dropped and counted, but the feedback in the same request is kept: a device whose
counters are broken must not lose what its users did.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram

from pocketrank.cloud.serving.telemetry.shared_metrics import add_counts, prepare_metrics
from pocketrank.device.codec import from_json, from_msgpack
from pocketrank.device.contract import ContractError, TelemetryReport
from pocketrank.device.contract.telemetry import BUCKETS_MAX

__all__ = ["DeviceTelemetry", "DeviceTelemetryConfig"]

H = TypeVar("H", bound=Hashable)

_OTHER = "other"
_NOTHING = (b"", b"null", b"\xc0")
_MSGPACK_FROM = 0x80
"""First byte of a map in MessagePack, or a larger one. JSON's are all smaller."""
_BOUNDS = tuple((1 << bucket) / 1e6 for bucket in range(1, BUCKETS_MAX))
"""Upper bounds of the devices' buckets in seconds; the last bucket has none."""


@dataclass(frozen=True)
class DeviceTelemetryConfig:
    """Bounds of the devices' telemetry."""

    bytes_max: int = 64 << 10
    """Size of a report in bytes as it was sent. The SDK's have some 4 kB. A larger one is dropped unread."""

    ids_max: int = 65_536
    """Report ids that are remembered to detect repeats, some 8 MB. A device repeats a report within its next few requests."""
    names_max: int = 256
    """Names of counters, and of timings, that have series of their own: the first ones reported. All others are summed up as
    `other`. A histogram has 25 time series."""
    fleets_max: int = 64
    """Combinations of sample rate, tier and bundle that have series of their own, likewise; one of them is `other`."""
    names_known: frozenset[str] = frozenset()
    """Names that always have series of their own, in addition to `names_max`."""


class DeviceTelemetry:
    """Receiver of telemetry reports, whose sums are in `registry`. Safe to call from several threads."""

    def __init__(self, registry: CollectorRegistry, config: DeviceTelemetryConfig | None = None) -> None:
        prepare_metrics()
        self._config = config or DeviceTelemetryConfig()
        self._lock = Lock()
        self._ids: dict[str, None] = {}
        fleet = ["result", "sample_rate", "tier", "bundle"]
        self._reports = Counter("pocketrank_device_reports", "Telemetry reports of devices.", fleet, registry=registry)
        self._counts = Counter("pocketrank_device_counts", "What devices counted.", ["name"], registry=registry)
        times = "What devices timed."
        self._times = Histogram("pocketrank_device_seconds", times, ["name"], buckets=_BOUNDS, registry=registry)
        self._duplicates, self._bad = (self._reports.labels(result, "", "", "") for result in ("duplicate", "bad"))
        self._fleets, self._count_names, self._time_names = set[tuple[str, ...]](), set[str](), set[str]()

    def __call__(self, telemetry: msgspec.Raw) -> None:
        """Count a request's `telemetry` as it was sent, in MessagePack or JSON: empty or null when it has none."""
        sent = memoryview(telemetry)
        if sent in _NOTHING:
            return
        report = None
        if len(sent) <= self._config.bytes_max:
            decode = from_json if sent[0] < _MSGPACK_FROM else from_msgpack
            with suppress(ContractError):
                report = decode(bytes(sent), TelemetryReport)
        with self._lock:
            if report is None:
                self._bad.inc()
            elif report.report_id in self._ids:
                self._duplicates.inc()
            else:
                self._count(report)

    def _count(self, report: TelemetryReport) -> None:
        self._ids[report.report_id] = None
        if len(self._ids) > self._config.ids_max:
            del self._ids[next(iter(self._ids))]
        fleet = (f"{report.sample_rate:g}", report.tier or "", report.bundle or "")
        if not _admit(fleet, self._fleets, self._config.fleets_max - 1):
            fleet = (_OTHER, _OTHER, _OTHER)
        self._reports.labels("accepted", *fleet).inc()
        for name, count in report.counters.items():
            self._counts.labels(self._label(name, self._count_names)).inc(count)
        for name, timing in report.timings.items():
            add_counts(self._times.labels(self._label(name, self._time_names)), timing.buckets, timing.sum_us / 1e6)

    def _label(self, name: str, known: set[str]) -> str:
        return name if name in self._config.names_known or _admit(name, known, self._config.names_max) else _OTHER


def _admit(key: H, known: set[H], known_max: int) -> bool:
    """Return whether `key` is one of the `known_max` keys that came first."""
    if len(known) < known_max:
        known.add(key)
    return key in known
