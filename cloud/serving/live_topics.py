"""The thread of a server that follows the topics of the event log for the run that is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from threading import Event, Thread

from pocketrank.cloud.pages.live_run import LiveRun
from pocketrank.cloud.published.published import published_digest
from pocketrank.cloud.serving.in_loop import StoppedError, call_in_loop
from pocketrank.cloud.serving.served_run import ServedRun
from pocketrank.cloud.streams.event_log import EventLog, EventLogError, EventLogOpenError

__all__ = ["LiveTopics"]

_PAUSE_S = 0.02
"""Pause between two looks at the topics."""

_logger = logging.getLogger(__name__)


class LiveTopics:
    """Follower of `log` for the run that is `served` first. Raises `EventLogOpenError`."""

    def __init__(self, log: EventLog, served: ServedRun) -> None:
        self._log, self._closed = log, Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.live = self.prepare(served)
        """What is applied to the run that is served now."""
        self._failed = ""
        self._thread = Thread(target=self._run, name="pocketrank-topics", daemon=True)

    def prepare(self, served: ServedRun) -> LiveRun:
        """Return a follower for a run that is not served yet, with all that is in the topics by now. Raises
        `EventLogOpenError`."""
        live = LiveRun(served.engine, served.run.published, self._log, published_digest(served.run.published))
        live.follow(lambda change: change())
        return live

    def start(self) -> None:
        """Follow the topics from now on. Call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def switch(self, live: LiveRun) -> None:
        """Go on with the follower of another run. Call it in the event loop."""
        self.live = live

    def check(self) -> None:
        """Raise `EventLogError` where the topics cannot be read or written."""
        if self._failed:
            raise EventLogOpenError("the event log", "topics that can be followed", self._failed)
        self._log.check()

    def close(self) -> None:
        """Stop following. The event loop must go on meanwhile."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_PAUSE_S):
            live = self.live
            try:
                live.follow(lambda change, live=live: self._in_loop(live, change))  # type: ignore[misc]
                self._failed = ""
            except (_SwitchedError, StoppedError):
                continue
            except Exception as error:
                if str(error) != self._failed:  # the same reason is logged once, and not at each attempt
                    _logger.error("the topics cannot be followed: %s", error, exc_info=not isinstance(error, EventLogError))
                self._failed = str(error)

    def _in_loop(self, live: LiveRun, change: Callable[[], None]) -> None:
        """Call `change` between two pages, unless another run is served by then."""
        assert self._loop is not None

        def call() -> None:
            if live is not self.live:
                raise _SwitchedError
            change()

        call_in_loop(self._loop, call, self._closed)


class _SwitchedError(Exception):
    """The change was for a run that is not served any more."""
