"""Threads for a user's own stages and channels, so that one that hangs costs its part of a page and not the server.

What is built in keeps its deadlines and runs in the thread that makes the page. Other code may wait for a lock or a network
for ever, and nothing can end it. So each such plugin has a thread of its own: the page waits for it as long as it has time, and
then goes on without it, as do all later pages until the call ends or another instance takes over. Code that never releases the
interpreter still stops the process; with several workers the supervisor replaces it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, nullcontext
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any, Generic, TypeVar

__all__ = ["HUNG_S", "HungError", "Watchdog"]

_logger = logging.getLogger(__name__)

HUNG_S = 1.0
"""A call that takes longer hangs: another instance is made."""
_INSTANCES_MAX = 8
"""Instances that are made in place of others. Each call that never ends keeps a thread and what its instance holds."""
_LOG_S = 60.0
"""Shortest time between two log lines about one plugin."""

P = TypeVar("P")
T = TypeVar("T")


class HungError(Exception):
    """A plugin did not end in time, in this call or in an earlier one that still runs."""


class Watchdog(Generic[P]):
    """A plugin that is called in a thread of its own. Not for several threads at a time."""

    def __init__(self, name: str, plugin: P, make: Callable[[], P]) -> None:
        """`name` is for the log. `make` returns another instance, in the thread that will call it."""
        self._name, self._make, self._logged_at = name, make, float("-inf")
        self._current, self._made = _Thread(name, lambda: plugin), 0
        self._next: _Thread[P] | None = None

    @property
    def plugin(self) -> P:
        """The instance that is called."""
        return self._current.plugin.result()

    @property
    def hung_s(self) -> float:
        """Seconds since the call began that has not ended; 0 when there is none."""
        return self._current.busy_s

    def __call__(self, call: Callable[[P], T], seconds: float) -> T:
        """Return or raise what `call` does with the plugin.

        Raises `HungError` when it has not ended after `seconds`, and at once when the call before it has not ended yet.
        """
        if (busy_s := self._current.busy_s) and not self._replace(busy_s):
            raise HungError
        job = self._current.run(call)
        try:
            return job.result(max(0.0, seconds))
        except TimeoutError:
            if job.done():
                raise  # its own
            self._log(seconds)
            raise HungError from None

    def _replace(self, busy_s: float) -> bool:
        """Go on with another instance if there is one by now; else have it made, if the call has taken long enough."""
        if self._next is None:
            if busy_s >= HUNG_S and self._made < _INSTANCES_MAX:
                self._made += 1
                self._next = _Thread(self._name, self._make)
            return False
        if not self._next.plugin.done() or self._next.plugin.exception() is not None:
            return False
        self._current.end()
        self._current, self._next = self._next, None
        return True

    def _log(self, seconds: float) -> None:
        now = perf_counter()
        if now - self._logged_at >= _LOG_S:
            self._logged_at = now
            _logger.error("%s did not end within %.0f ms; pages are made without it until it does", self._name, 1e3 * seconds)

    def close(self) -> None:
        """Close the plugin once the call that runs has ended, and wait for nothing."""
        for one in (self._current, self._next):
            if one is not None:
                one.end()


class _Thread(Generic[P]):
    """A thread that makes a plugin and calls it."""

    def __init__(self, name: str, make: Callable[[], P]) -> None:
        self.plugin = Future[P]()
        self._jobs = SimpleQueue[Callable[[], None] | None]()
        self._running: Future[Any] | None = None
        self._since = 0.0
        # A daemon, because one that hangs would also keep the process from ending.
        Thread(target=self._work, args=(make,), name=f"pocketrank-{name}", daemon=True).start()

    @property
    def busy_s(self) -> float:
        return perf_counter() - self._since if self._running is not None and not self._running.done() else 0.0

    def run(self, call: Callable[[P], T]) -> Future[T]:
        """Begin a call; the one before has ended."""
        job = self._running = Future[T]()
        self._since = perf_counter()
        work = partial(call, self.plugin.result())
        self._jobs.put(partial(copy_context().run, _settle, job, work))  # in the context, so that logs name the request
        return job

    def end(self) -> None:
        self._jobs.put(None)

    def _work(self, make: Callable[[], P]) -> None:
        _settle(self.plugin, make)
        if (error := self.plugin.exception()) is not None:
            _logger.error("no other instance could be made", exc_info=error)
            return
        plugin = self.plugin.result()
        with closing(plugin) if hasattr(plugin, "close") else nullcontext():
            while (job := self._jobs.get()) is not None:
                job()


def _settle(job: Future[T], work: Callable[[], T]) -> None:
    try:
        job.set_result(work())
    except BaseException as error:
        job.set_exception(error)
