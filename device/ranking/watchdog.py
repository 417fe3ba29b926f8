"""The watchdog, which keeps a swipe from waiting for a model that is too slow.

A run that has started cannot be stopped: not in LiteRT, and in onnxruntime only between two nodes of the graph. So the watchdog
runs the model on a thread of its own, waits for it as long as the budget allows, and then continues without it::

    overran     the budget is used up: the caller continues, the run is late and its result will be dropped
    busy        a late run is still active; no other starts before it ends
    resting     for `rest` swipes after `overruns_max` overruns in a row; then one run is tried, and a failure doubles the rest

Passing a run to the thread costs 30 µs where both threads share a core, 70 to 100 µs where another core must wake up first,
and 3 to 10 ms where a dozen processes compete for two cores. The order itself takes 140 to 600 µs (the tiny model of
`benchmarks.latency.subject`). Therefore a model earns trust: after `trust_after` consecutive runs in time it runs on the
caller's thread, which costs .7 µs, and the first overrun ends the trust. So a model that hangs from the start, or after it was
slow once, never blocks a swipe. A trusted model that hangs blocks one. For a hard bound on every swipe, set `trust_after` to
None.

A late run still reads its arrays. A caller that gets `overran` MUST leave those arrays to the run and continue with copies.
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
"""Why there is no result."""


@dataclass(frozen=True)
class WatchdogConfig:
    """When a swipe continues without the model. Raises ValueError for numbers out of range."""

    budget_ms: float = 50.0
    """Longest wait for an order. The default is three frames of a 60 Hz screen, and three times what a tier may take
    (`pocketrank.device.ranking.tiers`). The published system took 49 ms on iOS and 121 ms on Android (Gong et al., CIKM
    2022)."""
    trust_after: int | None = 20
    """Consecutive runs within the budget after which the model runs on the caller's thread. None is never, 0 always."""
    overruns_max: int = 3
    """Consecutive overruns after which the model rests."""
    rest: int = 8
    """Length of the first rest in swipes: about a minute of watching."""
    rest_max: int = 256
    """Length of the longest rest in swipes."""

    def __post_init__(self) -> None:
        trust = self.trust_after is None or self.trust_after >= 0
        if not (self.budget_ms > 0 and trust and self.overruns_max >= 1 and 1 <= self.rest <= self.rest_max):
            raise ValueError(f"expected budget_ms > 0, overruns_max >= 1 and 1 <= rest <= rest_max, got {self}")


@dataclass(slots=True)
class WatchdogCounters:
    """Counters of one watchdog, which start at 0."""

    watchdog_overran: int = 0
    """Runs that took longer than the budget, whether or not their results were dropped."""
    watchdog_busy: int = 0
    """Swipes without a run because a late one had not ended."""
    watchdog_resting: int = 0
    """Swipes without a run because the model rested."""


class _Run(Generic[T]):
    """One run on the watchdog's thread. The lock `ended` is held until the run has ended."""

    __slots__ = ("answer", "ended", "error", "work")

    def __init__(self, work: Callable[[], T]) -> None:
        self.work, self.ended = work, threading.Lock()
        self.ended.acquire()
        self.answer: T
        self.error: BaseException | None = None


class Watchdog:
    """Guard of one session's runs with one `Ranker`. Not for use from several threads at once.

    Its thread starts with the first run, sleeps between runs, and ends when the watchdog is garbage-collected. It is a daemon
    thread: a run that hangs does not keep the process alive.
    """

    def __init__(self, config: WatchdogConfig | None = None, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """`clock` returns nanoseconds. It measures runs on the caller's thread; the wait for other runs is in real time."""
        self.counters = WatchdogCounters()
        self._config, self._clock = config or WatchdogConfig(), clock
        self._budget_s, self._budget_ns = self._config.budget_ms / 1e3, self._config.budget_ms * 1e6
        self._queue: SimpleQueue[_Run[Any] | None] | None = None
        self._late: _Run[Any] | None = None
        self._good = self._overruns = self._resting = 0
        self._rest = self._config.rest

    @property
    def trusts(self) -> bool:
        """Whether the next run would be on the caller's thread."""
        return self._config.trust_after is not None and self._good >= self._config.trust_after

    def __call__(self, run: Callable[[], T]) -> tuple[T | None, Skipped | None]:
        """Return the result of `run`, or None and why there is none in time. Raises what `run` raises in time.

        A result that is late on the caller's thread is returned all the same, since it is there.
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
        self._late = run = _Run(work)  # set first, in case an interrupt ends the wait
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
    # The thread refers to the queue only: a reference to its watchdog would keep that alive for ever.
    while (run := queue.get()) is not None:
        try:
            run.answer = run.work()
        except BaseException as error:  # raised by the caller's thread
            run.error = error
        run.ended.release()
        del run  # frees the arrays that it read before the next run arrives
