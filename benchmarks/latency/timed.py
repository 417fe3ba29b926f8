"""Something to call, and how long each call took."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

__all__ = ["Timed", "milliseconds"]


def milliseconds(nanoseconds: list[int]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"p50_ms": float(np.median(nanoseconds)) / 1e6, "p99_ms": float(np.percentile(nanoseconds, 99)) / 1e6}


class Timed:
    """Collects times of a call; `step` makes one."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.ns: list[int] = []

    def step(self) -> None:
        """One timed call."""
        start = time.perf_counter_ns()
        self._call()
        self.ns.append(time.perf_counter_ns() - start)

    def forget(self) -> None:
        """Leave out the times so far."""
        self.ns.clear()

    @property
    def ms(self) -> float:
        """The median."""
        return milliseconds(self.ns)["p50_ms"]
