"""Servers in turn, round after round, so that a slow moment of the machine slows all; a figure is the median over rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.serving.host import Cores, Host
from benchmarks.serving.load import Load, LoadOrder

__all__ = ["MEDIANS", "Bench", "ServingExtent", "ServerSubject"]

MEDIANS = ("rps", "p50_ms", "p99_ms", "bytes", "cpu_ms", "others_share")
"""Figures of a server whose median over rounds is reported."""

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
    rounds: list[dict[str, float]] = field(default_factory=list)
    """Figures of each round. Of a request: `cpu_ms`, CPU milliseconds of the server's processes. Of the round:
    `others_share`, the share of the server's core that other processes took. The others are fields of `LoadResult`."""

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
        figures = {name: getattr(result, name) for name in ("rps", "p50_ms", "p99_ms", "bytes", "answers", "busy")}
        more = {"cpu_ms": cpu / result.answers * 1e3, "others_share": max(0.0, busy - cpu) / result.seconds}
        self.rounds.append(figures | more)

    def report(self) -> dict[str, Any]:
        """Return the figures of the report."""
        return {
            **{name: float(np.median([figures[name] for figures in self.rounds])) for name in MEDIANS},
            "answers": sum(figures["answers"] for figures in self.rounds),
            "load_busy": max(figures["busy"] for figures in self.rounds),
        }


@dataclass(frozen=True)
class Bench:
    """Common to all parts of the benchmark."""

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
                    subject.rounds.clear()
            elif between:
                between(seconds)
            progress(done / extent.rounds)
