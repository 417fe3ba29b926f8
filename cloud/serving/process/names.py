"""Names of servers, looked up beside the event loop.

Pages are made in the event loop, and clients of stores and indexes look a name up whenever they connect again. The system's
look-up takes no timeout: with a dead name server it held one page, and with it everything else, for 8 s. `bounded_lookups`
therefore makes every look-up of a process wait for milliseconds only, and goes on with the addresses of before.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Any

__all__ = ["Lookups", "bounded_lookups"]

_THREADS = 4
_NAMES_MAX = 256


class Lookups:
    """`socket.getaddrinfo` that waits at most `wait_s` seconds for a name, and keeps its addresses for `fresh_s` seconds.

    When the name server does not answer in time, the addresses of before are returned, however old, or the look-up fails with
    `socket.gaierror` (EAI_AGAIN). It goes on in a thread, and while it does, others of the same name do not wait.
    """

    def __init__(self, look_up: Callable[..., Any], wait_s: float = 0.05, fresh_s: float = 30.0) -> None:
        self._look_up, self._wait_s, self._fresh_s = look_up, wait_s, fresh_s
        self._known: dict[Any, tuple[Any, float]] = {}  # addresses, and when they were found
        self._pending: dict[Any, Future[Any]] = {}
        self._lock = Lock()
        # All threads are started at once: later there may be no memory for one.
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="names")
        for one in [self._pool.submit(lambda: None) for _ in range(_THREADS)]:
            one.result()

    def __call__(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        """Return what `socket.getaddrinfo` does. Raises what it raises."""
        key = (host, port, family, type, proto, flags)
        with self._lock:
            known = self._known.get(key)
            if known is not None and monotonic() - known[1] < self._fresh_s:
                return known[0]
            pending = self._pending.get(key)
            is_first = pending is None
            if pending is None:
                pending = self._pending[key] = self._pool.submit(self._look_up, *key)
                pending.add_done_callback(lambda done: self._found(key, done))
        try:
            return pending.result(self._wait_s if is_first else 0)
        except LateError:
            if known is not None:
                return known[0]
            raise socket.gaierror(socket.EAI_AGAIN, f"no name server answered for {host} in time") from None

    def _found(self, key: Any, done: Future[Any]) -> None:
        with self._lock:
            del self._pending[key]
            if not done.cancelled() and done.exception() is None:
                self._known.pop(key, None)
                self._known[key] = (done.result(), monotonic())
                if len(self._known) > _NAMES_MAX:
                    del self._known[next(iter(self._known))]

    def close(self) -> None:
        """Start no more look-ups. Those under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def bounded_lookups() -> Iterator[None]:
    """Bound all look-ups of names in this process, whichever library makes them."""
    before = socket.getaddrinfo
    lookups = Lookups(before)
    socket.getaddrinfo = lookups
    try:
        yield
    finally:
        socket.getaddrinfo = before
        lookups.close()
