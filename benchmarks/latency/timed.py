"""A call that is timed again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Timed", "milliseconds"]


def milliseconds(nanoseconds: list[int]) -> dict[str, float]:
    """Return the median and the 99th percentile of `nanoseconds`, in milliseconds."""
    return {"p50_ms": float(np.median(nanoseconds)) / 1e6, "p99_ms": float(np.percentile(nanoseconds, 99)) / 1e6}


class Timed:
    """Durations of a call, one for each `step`. The arguments from `prepare` are made before the clock starts."""

    def __init__(self, call: Callable[..., object], prepare: Callable[[], tuple[Any, ...]] = tuple) -> None:
        self._call, self._prepare = call, prepare
        self.ns: list[int] = []

    def step(self) -> None:
        """Make one timed call."""
        arguments = self._prepare()
        start = time.perf_counter_ns()
        self._call(*arguments)
        self.ns.append(time.perf_counter_ns() - start)

    def forget(self) -> None:
        """Discard the durations so far."""
        self.ns.clear()

    @property
    def ms(self) -> float:
        """Median duration in milliseconds."""
        return milliseconds(self.ns)["p50_ms"]
