"""Periodic renewal of what a server needs from a store before its time to live is over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from pocketrank.cloud.stores.base import StoreError

__all__ = ["Renewal"]

_TTL_SHARE = 0.25
"""Share of the time to live between two renewals, so that a store may be unavailable for half of it."""

_logger = logging.getLogger(__name__)


class Renewal:
    """Thread that calls `renew` several times in each `ttl_s` seconds. A call that fails is retried at the next turn."""

    def __init__(self, renew: Callable[[], object], ttl_s: float) -> None:
        """`renew` may raise `StoreError`."""
        self._renew, self._every_s, self._closed = renew, _TTL_SHARE * ttl_s, Event()
        self._thread = Thread(target=self._run, name="pocketrank-renewal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            try:
                self._renew()
            except StoreError as error:
                _logger.warning("the time to live of the vectors could not be renewed: %s", error)

    def close(self) -> None:
        """Stop, after a call that is under way."""
        self._closed.set()
        self._thread.join()
