"""What devices tell of themselves, summed up for Prometheus.

::

    pocketrank_device_reports_total{result, sample_rate, tier, bundle}     accepted, duplicate or bad
    pocketrank_device_counts_total{name}                                   decisions and fallbacks
    pocketrank_device_seconds{name}                                        a histogram, by the devices' own buckets

Sums are of the devices that report: nothing is scaled up. A report is taken once by its id, as far back as the ids are
remembered and as long as the process lives; another process does not know them, so a report that is sent again to another
worker counts twice. That is enough for a picture of the fleet. Several workers add up, and each keeps the bounds for itself.
A report that the contract does not allow is dropped and counted, and the feedback it came with is not: a device whose counters
are broken must not lose what its users did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import msgspec
from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pocketrank.cloud.serving.telemetry.shared_metrics import prepare_metrics
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError, TelemetryReport
from pocketrank.device.contract.telemetry import BUCKETS_MAX

__all__ = ["DeviceTelemetry", "DeviceTelemetryConfig", "with_any_telemetry"]

S = TypeVar("S", bound=msgspec.Struct)

_OTHER = "other"
_BOUNDS = tuple((1 << bucket) / 1e6 for bucket in range(1, BUCKETS_MAX))
"""Upper bounds of the devices' buckets in seconds; the last has none."""


def with_any_telemetry(struct: type[S]) -> type[S]:
    """`struct` as it is decoded when its `telemetry` may be anything, for `DeviceTelemetry` to judge by itself."""
    return msgspec.defstruct(  # type: ignore[return-value]
        struct.__name__, [("telemetry", Any, None)], bases=(struct,), frozen=True, kw_only=True
    )


@dataclass(frozen=True)
class DeviceTelemetryConfig:
    """How much is kept of what devices say."""

    ids_max: int = 65_536
    """Report ids remembered to tell repeats; some 8 MB. A repeat follows within a few calls of one device."""
    names_max: int = 256
    """Counters, and timings, that are told apart, first come; all others are `other`. A histogram has 25 time series."""
    fleets_max: int = 64
    """Combinations of sample rate, tier and bundle that are told apart, likewise."""
    names_known: frozenset[str] = frozenset()
    """Names that are always told apart, whatever else came first."""


class DeviceTelemetry(Collector):
    """Takes reports in, and is what a registry collects. Safe to call from several threads."""

    def __init__(self, config: DeviceTelemetryConfig | None = None) -> None:
        prepare_metrics()
        self._config = config or DeviceTelemetryConfig()
        self._lock = Lock()
        self._ids: dict[str, None] = {}
        fleet = ["result", "sample_rate", "tier", "bundle"]
        self._all_reports = Counter("pocketrank_device_reports", "Telemetry reports of devices.", fleet, registry=None)
        self._all_counts = Counter("pocketrank_device_counts", "What devices counted.", ["name"], registry=None)
        self._all_times = _Counted("pocketrank_device_seconds", "What devices timed.", ["name"], buckets=_BOUNDS, registry=None)
        self._duplicates, self._bad = (self._all_reports.labels(result, "", "", "") for result in ("duplicate", "bad"))
        self._fleets: dict[tuple[str, ...], Counter] = {}
        self._counts: dict[str, Counter] = {}
        self._times: dict[str, _Counted] = {}

    def __call__(self, telemetry: object) -> None:
        """Take in what came as a request's `telemetry`; None is nothing."""
        if telemetry is None:
            return
        try:
            report = from_msgpack(to_msgpack(telemetry), TelemetryReport)  # type: ignore[arg-type]
        except (ContractError, RecursionError):
            report = None
        with self._lock:
            if report is None:
                self._bad.inc()
            elif report.report_id in self._ids:
                self._duplicates.inc()
            else:
                self._take(report)

    def _take(self, report: TelemetryReport) -> None:
        self._ids[report.report_id] = None
        if len(self._ids) > self._config.ids_max:
            del self._ids[next(iter(self._ids))]
        fleet = (f"{report.sample_rate:g}", report.tier or "", report.bundle or "")
        if fleet not in self._fleets and len(self._fleets) >= self._config.fleets_max - 1:
            fleet = (_OTHER, _OTHER, _OTHER)
        if fleet not in self._fleets:
            self._fleets[fleet] = self._all_reports.labels("accepted", *fleet)
        self._fleets[fleet].inc()
        for name, count in report.counters.items():
            name = self._admit(name, self._counts)
            if name not in self._counts:
                self._counts[name] = self._all_counts.labels(name)
            self._counts[name].inc(count)
        for name, timing in report.timings.items():
            name = self._admit(name, self._times)
            if name not in self._times:
                self._times[name] = self._all_times.labels(name)
            self._times[name].add(timing.buckets, timing.sum_us / 1e6)

    def _admit(self, name: str, known: dict[str, Any]) -> str:
        if name in known or name in self._config.names_known or len(known) < self._config.names_max:
            return name
        return _OTHER

    def collect(self) -> Iterator[Metric]:
        """The metrics of now."""
        with self._lock:
            families = [list(metric.collect()) for metric in (self._all_reports, self._all_counts, self._all_times)]
        for family in families:
            yield from family


class _Counted(Histogram):
    """A histogram of what was put into its buckets elsewhere, for which prometheus_client has no method."""

    def add(self, counts: Sequence[int], seconds: float) -> None:
        for bucket, count in zip(self._buckets, counts, strict=False):  # a report leaves out the empty ones at its end
            if count:
                bucket.inc(count)
        self._sum.inc(seconds)
