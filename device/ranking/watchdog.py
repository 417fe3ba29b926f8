"""Keeps a swipe from waiting for a model that does not answer in time.

A run that was begun cannot be stopped: not in LiteRT, and in onnxruntime only between two nodes of the graph. So the watchdog
has the run made on a thread of its own, waits for it as long as the budget allows, and goes on without it::

    overran     the budget is used up: the caller goes on, the run is late and its answer will be dropped
    busy        a late run still goes on; no other is begun before it ends
    resting     after `overruns_max` overruns in a row, for `rest` swipes; then it is tried once, and a failure doubles the rest

Handing a run over costs 30 µs where both threads share a core, 70 to 100 µs where another core must wake up first, and 3 to 10
ms where a dozen processes want two cores, beside the 140 to 600 µs of the order itself (`benchmarks.latency.subject`'s tiny
model). Therefore a model earns trust: after `trust_after` runs in time, one after the other, the caller's thread makes the
run, which costs .7 µs; the first overrun ends the trust. So a model that hangs from the start, or after it was slow once,
never holds a swipe, and one that hangs out of the blue holds one. For a hard bound on every swipe set `trust_after` to None.

A late run still reads what it was given. Whoever gets `overran` MUST leave those arrays to it and go on with copies.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, Literal, TypeAlias, TypeVar

__all__ = ["Skipped", "Watchdog", "WatchdogConfig", "WatchdogCounters"]

T = TypeVar("T")

Skipped: TypeAlias = Literal["overran", "busy", "resting"]
"""Why there is no answer."""


@dataclass(frozen=True)
class WatchdogConfig:
    """When a swipe goes on without the model. Raises ValueError for numbers out of range."""

    budget_ms: float = 50.0
    """Longest wait for an order: three frames of a screen of 60 Hz, and three times what a tier may take
    (`pocketrank.device.ranking.tiers`). The published system took 49 ms on iOS and 121 ms on Android (Gong et al., CIKM
    2022)."""
    trust_after: int | None = 20
    """Runs within the budget in a row after which the model is run on the caller's thread; None: never, 0: always."""
    overruns_max: int = 3
    """Overruns in a row after which the model rests."""
    rest: int = 8
    """Swipes of the first rest: about a minute of watching."""
    rest_max: int = 256
    """Swipes of the longest rest."""

    def __post_init__(self) -> None:
        trust = self.trust_after is None or self.trust_after >= 0
        if not (self.budget_ms > 0 and trust and self.overruns_max >= 1 and 1 <= self.rest <= self.rest_max):
            raise ValueError(f"expected budget_ms > 0, overruns_max >= 1 and 1 <= rest <= rest_max, got {self}")


@dataclass(slots=True)
class WatchdogCounters:
    """Totals of one watchdog, from 0."""

    watchdog_overran: int = 0
    """runs that took longer than the budget, their answers dropped or not"""
    watchdog_busy: int = 0
    """swipes without a run since a late one had not ended"""
    watchdog_resting: int = 0
    """swipes without a run since the model rested"""


class _Run(Generic[T]):
    """One run that was handed over. `ended` is locked until it is over."""

    __slots__ = ("answer", "ended", "error", "work")

    def __init__(self, work: Callable[[], T]) -> None:
        self.work, self.ended = work, threading.Lock()
        self.ended.acquire()
        self.answer: T
        self.error: BaseException | None = None


class Watchdog:
    """Guards the runs of one session with one `Ranker`; another ranker is another's. Not for use from several threads at once.

    The thread begins with the first run that is handed over, sleeps between two, and ends when the watchdog is let go of. It is
    a daemon: a run that hangs does not keep the process.
    """

    def __init__(self, config: WatchdogConfig | None = None, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """`clock` tells nanoseconds, and only judges runs on the caller's thread: no clock can be waited for."""
        self.counters = WatchdogCounters()
        self._config, self._clock = config or WatchdogConfig(), clock
        self._budget_s, self._budget_ns = self._config.budget_ms / 1e3, self._config.budget_ms * 1e6
        self._queue: SimpleQueue[_Run[Any] | None] | None = None
        self._late: _Run[Any] | None = None
        self._good = self._overruns = self._resting = 0
        self._rest = self._config.rest

    @property
    def trusts(self) -> bool:
        """Whether the next run would be made on the caller's thread."""
        return self._config.trust_after is not None and self._good >= self._config.trust_after

    def __call__(self, run: Callable[[], T]) -> tuple[T | None, Skipped | None]:
        """What `run` answers, or None and why there is no answer in time. Raises what `run` raises in time.

        An answer that came too late on the caller's thread is given all the same, since it is there.
        """
        if self._late is not None:
            if not self._late.ended.acquire(blocking=False):
                self.counters.watchdog_busy += 1
                return None, "busy"
            self._late = None
        if self._resting:
            self._resting -= 1
            self.counters.watchdog_resting += 1
            return None, "resting"
        return self._trusted(run) if self.trusts else self._handed_over(run)

    def _trusted(self, run: Callable[[], T]) -> tuple[T, None]:
        begin = self._clock()
        answer = run()
        self._judge(self._clock() - begin <= self._budget_ns)
        return answer, None

    def _handed_over(self, work: Callable[[], T]) -> tuple[T | None, Skipped | None]:
        if self._queue is None:
            self._queue = SimpleQueue()
            threading.Thread(target=_serve, args=(self._queue,), name="pocketrank-watchdog", daemon=True).start()
            weakref.finalize(self, self._queue.put, None)
        self._late = run = _Run(work)  # at once, for a wait that is broken off by an interrupt
        self._queue.put(run)
        if not run.ended.acquire(timeout=self._budget_s):
            self._judge(False)
            return None, "overran"
        self._late = None
        if run.error is not None:
            raise run.error
        self._judge(True)
        return run.answer, None

    def _judge(self, in_time: bool) -> None:
        if in_time:
            self._good += 1
            self._overruns, self._rest = 0, self._config.rest
            return
        self.counters.watchdog_overran += 1
        self._good = 0
        self._overruns += 1
        if self._overruns >= self._config.overruns_max:
            self._resting = self._rest
            self._rest = min(2 * self._rest, self._config.rest_max)


def _serve(queue: SimpleQueue[_Run[Any] | None]) -> None:
    # Knows the queue alone: a thread that held its watchdog would keep it forever.
    while (run := queue.get()) is not None:
        try:
            run.answer = run.work()
        except BaseException as error:  # the caller's to raise
            run.error = error
        run.ended.release()
        del run  # with what it reads, until the next one comes
