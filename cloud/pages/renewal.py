"""Starts the life of what a server needs anew, long before it is over, for as long as the server runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from pocketrank.cloud.stores.base import StoreError

__all__ = ["Renewal"]

_SHARE = 0.25
"""Of a life after which it starts anew: a store may be away for half of it."""

_logger = logging.getLogger(__name__)


class Renewal:
    """Calls `renew` several times in each `ttl_s`, in a thread; one that fails is tried again at the next time."""

    def __init__(self, renew: Callable[[], object], ttl_s: float) -> None:
        """`renew` may raise `StoreError`."""
        self._renew, self._every_s, self._closed = renew, _SHARE * ttl_s, Event()
        self._thread = Thread(target=self._run, name="pocketrank-renewal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            try:
                self._renew()
            except StoreError as error:
                _logger.warning("the life of the vectors could not be started anew: %s", error)

    def close(self) -> None:
        """Stop, after what is under way."""
        self._closed.set()
        self._thread.join()
