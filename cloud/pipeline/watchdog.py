"""Threads for a user's own stages and channels, so that one that hangs costs its part of a page and not the server.

What is built in keeps its deadlines and runs in the thread that makes the page. Other code may wait for a lock or a network
for ever, and nothing can end it. So each such plugin has a thread of its own: the page waits for it as long as it has time, and
then goes on without it, as do all later pages until the call ends. Code that never releases the interpreter still stops the
process; with several workers the supervisor replaces it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any, TypeVar

__all__ = ["HungError", "Watchdog"]

_logger = logging.getLogger(__name__)
_LOG_S = 60.0
"""Shortest time between two log lines about one plugin."""

T = TypeVar("T")


class HungError(Exception):
    """A plugin did not end in time, in this call or in an earlier one that still runs."""


class Watchdog:
    """The thread of one plugin. Not for several threads at a time."""

    def __init__(self, name: str) -> None:
        """`name` is the plugin's, for the log."""
        self._name, self._logged_at = name, float("-inf")
        self._jobs = SimpleQueue[Callable[[], None] | None]()
        self._running: Future[Any] | None = None
        self._since = 0.0
        # A daemon, because one that hangs would also keep the process from ending.
        Thread(target=_work, args=(self._jobs,), name=f"pocketrank-{name}", daemon=True).start()

    @property
    def hung_s(self) -> float:
        """Seconds since the call began that has not ended; 0 when there is none."""
        return perf_counter() - self._since if self._running is not None and not self._running.done() else 0.0

    def __call__(self, work: Callable[[], T], seconds: float) -> T:
        """Return or raise what `work` does.

        Raises `HungError` when it has not ended after `seconds`, and at once when the call before it has not ended yet.
        """
        if self.hung_s:
            raise HungError
        job = self._running = Future[T]()
        self._since = perf_counter()
        self._jobs.put(partial(copy_context().run, _settle, job, work))  # in the context, so that logs name the request
        try:
            return job.result(max(0.0, seconds))
        except TimeoutError:
            if job.done():
                raise  # its own
            self._log(seconds)
            raise HungError from None

    def _log(self, seconds: float) -> None:
        now = perf_counter()
        if now - self._logged_at >= _LOG_S:
            self._logged_at = now
            _logger.error("%s did not end within %.0f ms; pages are made without it until it does", self._name, 1e3 * seconds)

    def close(self) -> None:
        """End the thread once the call that runs has ended, and wait for nothing."""
        self._jobs.put(None)


def _work(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


def _settle(job: Future[T], work: Callable[[], T]) -> None:
    try:
        job.set_result(work())
    except BaseException as error:
        job.set_exception(error)
