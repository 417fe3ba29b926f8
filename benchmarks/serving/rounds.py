"""Servers in turn, round after round, so that a slow moment of the machine slows all; a figure is the median over rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.serving.host import Cores, Host
from benchmarks.serving.load import Load, LoadOrder, LoadResult

__all__ = ["Bench", "ServingExtent", "ServerSubject"]

Progress = Callable[[float], None]


@dataclass(frozen=True)
class ServingExtent:
    """Extent of the measurement."""

    seconds: float = 4.0
    """Seconds of one round of one server."""
    rounds: int = 5
    """Rounds of all servers, after a short one that does not count."""
    connections: int = 4
    """Requests under way: two more than threads make pages, so that the server never waits for a request."""
    http_connections: int = 16
    """The same where an answer is so quick that the load takes part of the time."""
    items: int = 100_000
    """Catalogue behind the page and its peers."""
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000)
    """Catalogues of the growth."""
    requests: int = 4_000
    """Different requests without feedback; they are sent again when they run out."""


@dataclass(frozen=True)
class ServerSubject:
    """A server that is measured under load."""

    host: Host
    requests: Callable[[], str]
    """The file of the next round's requests."""
    connections: int
    once: bool = False
    """No request may be sent twice."""
    results: list[LoadResult] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """CPU milliseconds of the server's processes a request, by round."""
    others: list[float] = field(default_factory=list)
    """Share of the server's core that other processes took, by round."""

    def round(self, load: Load, seconds: float) -> None:
        """Load the server for `seconds`. Raises `BenchmarkError` when an answer is not a page."""
        order = LoadOrder(
            port=self.host.port,
            requests=self.requests(),
            connections=self.connections,
            seconds=seconds,
            in_order=self.once,
        )
        cpu, busy = self.host.cpu_s(), self.host.core_busy_s()
        result = load(order)
        cpu, busy = self.host.cpu_s() - cpu, self.host.core_busy_s() - busy
        if result.errors or not result.answers:
            got = f"{result.errors} errors and {result.answers} answers: {result.first_error}"
            raise BenchmarkError(self.host.name, "no errors", got)
        self.cpu_ms.append(cpu / result.answers * 1e3)
        self.others.append(max(0.0, busy - cpu) / result.seconds)
        self.results.append(result)

    def forget(self) -> None:
        """Discard the rounds so far."""
        for rounds in (self.results, self.cpu_ms, self.others):
            rounds.clear()

    def median(self, name: str) -> float:
        """Return the median over rounds of a field of the results."""
        return float(np.median([getattr(result, name) for result in self.results]))

    def report(self) -> dict[str, Any]:
        """Return the figures of the report."""
        return {
            **{name: self.median(name) for name in ("rps", "p50_ms", "p99_ms", "bytes")},
            "cpu_ms": float(np.median(self.cpu_ms)),
            "answers": sum(result.answers for result in self.results),
            "others_share": float(np.median(self.others)),
            "load_busy": max(result.busy for result in self.results),
        }


@dataclass(frozen=True)
class Bench:
    """What all parts of the benchmark share."""

    extent: ServingExtent
    cores: Cores
    load: Load
    work: Path
    """Scratch."""

    def fixed(self, requests: Sequence[bytes]) -> Callable[[], str]:
        """Return a function that gives the same requests every round."""
        file = self.load.file(requests)
        return lambda: file

    def measure(
        self, subjects: Mapping[str, ServerSubject], progress: Progress, between: Callable[[float], None] | None = None
    ) -> None:
        """Run all rounds. `between` is called after each with the seconds of a round."""
        extent = self.extent
        for done in range(extent.rounds + 1):
            seconds = extent.seconds if done else min(1.0, extent.seconds)
            for subject in subjects.values():
                subject.round(self.load, seconds)
            if not done:
                for subject in subjects.values():
                    subject.forget()
            elif between:
                between(seconds)
            progress(done / extent.rounds)
