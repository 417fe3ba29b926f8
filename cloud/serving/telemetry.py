"""What devices tell of themselves, summed up for Prometheus.

::

    pocketrank_device_reports_total{result, sample_rate, tier, bundle}     accepted, duplicate or bad
    pocketrank_device_counts_total{name}                                   decisions and fallbacks
    pocketrank_device_seconds{name}                                        a histogram, by the devices' own buckets

Sums are of the devices that report: nothing is scaled up. A report is taken once by its id, as far back as the ids are
remembered and as long as the process lives; another process does not know them. That is enough for a picture of the fleet, and
a counter that restarts is what Prometheus expects. A report that the contract does not allow is dropped and counted, and the
feedback it came with is not: a device whose counters are broken must not lose what its users did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from device.codec import from_msgpack, to_msgpack
from device.contract import ContractError, TelemetryReport
from device.contract.telemetry import BUCKETS_MAX

__all__ = ["DeviceTelemetry", "DeviceTelemetryConfig", "with_any_telemetry"]

S = TypeVar("S", bound=msgspec.Struct)

_OTHER = "other"


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
        self._config = config or DeviceTelemetryConfig()
        self._lock = Lock()
        self._ids: dict[str, None] = {}
        self._reports: dict[tuple[str, ...], int] = {(result, "", "", ""): 0 for result in ("duplicate", "bad")}
        self._counts: dict[str, int] = defaultdict(int)
        self._times: dict[str, list[int]] = defaultdict(lambda: [0] * (BUCKETS_MAX + 1))  # the last is their sum

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
                self._reports["bad", "", "", ""] += 1
            elif report.report_id in self._ids:
                self._reports["duplicate", "", "", ""] += 1
            else:
                self._take(report)

    def _take(self, report: TelemetryReport) -> None:
        self._ids[report.report_id] = None
        if len(self._ids) > self._config.ids_max:
            del self._ids[next(iter(self._ids))]
        fleet = ("accepted", f"{report.sample_rate:g}", report.tier or "", report.bundle or "")
        if fleet not in self._reports and len(self._reports) > self._config.fleets_max:
            fleet = ("accepted", _OTHER, _OTHER, _OTHER)
        self._reports[fleet] = self._reports.get(fleet, 0) + 1
        for name, count in report.counters.items():
            self._counts[self._admit(name, self._counts)] += count
        for name, timing in report.timings.items():
            sums = self._times[self._admit(name, self._times)]
            for bucket, count in enumerate(timing.buckets):
                sums[bucket] += count
            sums[-1] += timing.sum_us

    def _admit(self, name: str, known: dict[str, Any]) -> str:
        if name in known or name in self._config.names_known or len(known) < self._config.names_max:
            return name
        return _OTHER

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        """The metrics of now."""
        with self._lock:
            reports, counts = dict(self._reports), dict(self._counts)
            times = {name: list(sums) for name, sums in self._times.items()}
        labels = ["result", "sample_rate", "tier", "bundle"]
        family = CounterMetricFamily("pocketrank_device_reports", "Telemetry reports of devices.", labels=labels)
        for fleet, count in reports.items():
            family.add_metric(fleet, count)
        yield family
        family = CounterMetricFamily("pocketrank_device_counts", "What devices counted.", labels=["name"])
        for name, count in counts.items():
            family.add_metric([name], count)
        yield family
        seconds = HistogramMetricFamily("pocketrank_device_seconds", "What devices timed.", labels=["name"])
        for name, sums in times.items():
            total, buckets = 0, []
            for bucket, count in enumerate(sums[:-1], start=1):
                total += count
                buckets.append((str((1 << bucket) / 1e6) if bucket < BUCKETS_MAX else "+Inf", total))
            seconds.add_metric([name], buckets, sums[-1] / 1e6)
        yield seconds
