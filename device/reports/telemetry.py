"""Counts and times of a session for the team that ships the app: summed up on the device, sent along with feedback.

Whole sessions are in the sample or out of it, by a hash of the session's id, so that the sums of one session belong together.
A report has names and numbers only: nothing about the user or an item, and the time of no single event. A report that could
not be sent is sent again unchanged, under its id, so that the cloud counts it once even if it did arrive.

A count costs .2 µs, a time .3 µs, outside of the sample .1 µs; a report with all of a session's counters 40 µs.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from pocketrank.device.contract import TelemetryReport, Timing
from pocketrank.device.contract.telemetry import BUCKETS_MAX, COUNT_MAX, NAME_PATTERN, NAMES_MAX, SUM_MAX, TEXT_MAX

__all__ = ["OTHER", "Telemetry", "TelemetryConfig"]

OTHER = "other"
"""Name for what has an invalid name, or a new one when there are `NAMES_MAX` names already."""

_NAME = re.compile(NAME_PATTERN)
_TIME_MAX = 1 << 32  # µs, more than an hour
_BUCKETS = (0, *(min(bits, BUCKETS_MAX) - 1 for bits in range(1, _TIME_MAX.bit_length() + 1)))  # bit length of a time → bucket
_SUM, _MAX = BUCKETS_MAX, BUCKETS_MAX + 1  # indices behind the buckets


@dataclass(frozen=True)
class TelemetryConfig:
    """Which sessions report. Raises ValueError for numbers out of range."""

    rate: float = 1.0
    """Share of sessions that report; all of them until there are many devices. In a 1 % sample of a million sessions, a count
    is off by some 1 % when it occurs in every session, and by 10 % when it occurs in one of a hundred."""
    unsent_max: int = 4
    """Maximum number of reports that wait to be sent again; beyond that the oldest is dropped. Each call under way has one."""

    def __post_init__(self) -> None:
        if not (0 <= self.rate <= 1 and self.unsent_max >= 1):
            raise ValueError(f"expected a rate in 0..1 and unsent_max >= 1, got {self}")


class Telemetry:
    """Counts and times of one session. Not for use from several threads at once."""

    def __init__(
        self,
        session_id: str,
        now_ms: int,
        config: TelemetryConfig | None = None,
        *,
        sdk: str | None = None,
        bundle: str | None = None,
        tier: str | None = None,
        start: str = "",
    ) -> None:
        """Count from `now_ms` on. `sdk`, `bundle` and `tier` are in each report (`TelemetryReport`).

        `start` tells the starts of a session apart that have one id and, by a clock that was set, one time.
        """
        self._config, self._name = config or TelemetryConfig(), f"{session_id}/{start}"
        self.sampled = _digest(session_id, 8) < int(self._config.rate * (1 << 64))
        """Whether this session reports."""
        self.sdk, self.bundle, self.tier = sdk, bundle, tier
        self._since_ms, self._reports = now_ms, 0
        self._counts: dict[str, int] = {}
        self._times: dict[str, list[int]] = {}  # buckets, sum, longest
        self._totals: dict[str, int] = {}
        self._unsent: deque[TelemetryReport] = deque()

    def count(self, name: str, n: int = 1) -> None:
        """Add `n` to the counter `name`."""
        if self.sampled:
            counts = self._counts
            if name not in counts:
                counts.setdefault(name := _admit(name, counts), 0)
            counts[name] += n

    def time(self, name: str, ns: int) -> None:
        """Add a time in nanoseconds to the histogram `name`."""
        if self.sampled:
            times = self._times.get(name)
            if times is None:
                times = self._times.setdefault(_admit(name, self._times), [0] * (BUCKETS_MAX + 2))
            # A clock may go back or jump: such a time is cut to what a bucket can hold.
            us = ns // 1000
            if not 0 <= us <= _TIME_MAX:
                us = 0 if us < 0 else _TIME_MAX
            times[_BUCKETS[us.bit_length()]] += 1
            times[_SUM] += us
            if us > times[_MAX]:
                times[_MAX] = us

    def merge(self, totals: Mapping[str, int]) -> None:
        """Count by how much each of `totals` grew since the last call. A total that is smaller than before restarted from 0."""
        for name, total in totals.items():
            before = self._totals.get(name, 0)
            self._totals[name] = total
            if more := total - before if total >= before else total:
                self.count(name, more)

    def report(self, now_ms: int) -> TelemetryReport | None:
        """Return a report for the caller to send: one that was put back, else all since the last; None when there is none."""
        return self._unsent.popleft() if self._unsent else self._new_report(now_ms)

    def use_bundle(self, bundle: str | None, now_ms: int) -> None:
        """Name another bundle in the reports from now on. What was counted before is reported with the old name."""
        self.put_back(self._new_report(now_ms))
        self.bundle = bundle

    def _new_report(self, now_ms: int) -> TelemetryReport | None:
        if not (self._counts or self._times):
            return None
        self._reports += 1
        # A session that is opened again counts its reports from 0 again, but begins at another time.
        name = f"{self._name}/{self._since_ms}/{self._reports}"
        report = TelemetryReport(
            report_id=f"{_digest(name, 16):032x}",
            since_ms=self._since_ms,
            until_ms=now_ms,
            counters={name: min(count, COUNT_MAX) for name, count in self._counts.items() if count > 0},
            timings={name: _timing(times) for name, times in self._times.items()},
            sample_rate=self._config.rate,
            sdk=self.sdk and self.sdk[:TEXT_MAX],
            bundle=self.bundle and self.bundle[:TEXT_MAX],
            tier=self.tier and self.tier[:TEXT_MAX],
        )
        self._counts, self._times, self._since_ms = {}, {}, now_ms
        return report

    def put_back(self, report: TelemetryReport | None) -> None:
        """Send `report` again with the next call, since it could not be sent. None, as `report` may return it, is ignored."""
        if report is not None:
            self._unsent.append(report)
            if len(self._unsent) > self._config.unsent_max:
                self._unsent.popleft()
                self.count("reports_dropped")

    def discard(self, report: TelemetryReport | None) -> None:
        """Drop a report that was put back. One that is not waiting, and None, are ignored."""
        if report is not None and report in self._unsent:
            self._unsent.remove(report)
            self.count("reports_dropped")


def _digest(text: str, size: int) -> int:
    # `person` keeps the sample independent of roll-outs that hash the same id.
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size, person=b"telemetry").digest())


def _admit(name: str, known: Mapping[str, object]) -> str:
    return name if len(known) < NAMES_MAX - 1 and _NAME.match(name) else OTHER


def _timing(times: list[int]) -> Timing:
    buckets = times[:BUCKETS_MAX]
    while not buckets[-1]:
        buckets.pop()
    longest = times[_MAX]
    return Timing(count=sum(buckets), sum_us=min(times[_SUM], SUM_MAX), max_us=longest, buckets=tuple(buckets))
