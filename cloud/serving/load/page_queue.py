"""Page requests that wait for the event loop. One that would wait too long is refused at once.

Pages are made one at a time in the event loop itself, which was 5 % faster a page than handing each to a thread and back (p10
of 1,500 alternated requests); more cores are for more processes (`pocketrank.cloud.serving.process.workers`). Between two
pages the loop reads what has arrived, so the queue knows its length and the age of every request.

Errors::

    WireError
    └── BusyError              429: too many requests wait; holds after how many seconds to retry
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from time import perf_counter
from typing import Generic, TypeVar

from pocketrank.cloud.serving.http.wire import WireError
from pocketrank.cloud.serving.load.price import ComputePrice

__all__ = ["TURN_S", "BusyError", "PageQueue"]

_MEAN_WEIGHT = 0.1
"""Weight of the latest page in the mean time of a page."""
_RETRY_MAX_S = 30
TURN_S = 0.005
"""Time for which pages are made at once, without queueing, in one turn of the loop; requests that arrive after it wait in the
queue. Queueing a request costs 55 µs, most of it for turns of the loop: with a constant page on one core, a request takes 140
µs of CPU with it and 90 without."""

A = TypeVar("A")
R = TypeVar("R")


class BusyError(WireError):
    """Too many requests wait. `reason` names the queue in the metrics."""

    def __init__(self, wait_s: float, reason: str = "queue") -> None:
        headers = {"Retry-After": str(min(_RETRY_MAX_S, max(1, math.ceil(wait_s))))}
        super().__init__(429, "$", "room in the queue", f"a wait of {round(1e3 * wait_s)} ms", headers)
        self.reason = reason


class PageQueue(Generic[A, R]):
    """Bounded queue of page requests before `make`. For one event loop."""

    def __init__(self, make: Callable[[A, float], R], wait_max_s: float, price: ComputePrice) -> None:
        """`make` is called with a request and the time at which it arrived.

        A request that would wait longer than `wait_max_s` is refused. `price` follows how many requests wait or are made.
        """
        self._make, self._wait_max_s, self._price = make, wait_max_s, price
        self._waiting: deque[tuple[A, float, Context, asyncio.Future[R]]] = deque()
        self._mean_s, self._reserved, self._turn_spent_s = 0.0, 0, 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self) -> None:
        """Raise `BusyError` if a request that arrives now would wait too long. Call it before any work for the request."""
        if (wait_s := (len(self._waiting) + self._reserved) * self._mean_s) > self._wait_max_s:
            raise BusyError(wait_s)

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold a place in the queue for a request that has entered but waits for something else first."""
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    async def __call__(self, request: A, since: float) -> R:
        """Return or raise what `make` does for `request`, which arrived at `since`."""
        self._price.enter()
        try:
            if not self._waiting and self._turn_spent_s < TURN_S:
                return self._make_now(request, since)
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[R] = loop.create_future()
            self._waiting.append((request, since, copy_context(), answer))
            if len(self._waiting) == 1:
                loop.call_soon(self._make_next)
            return await answer
        finally:
            self._price.leave()

    def _make_now(self, request: A, since: float) -> R:
        if not self._turn_spent_s:
            asyncio.get_running_loop().call_soon(self._start_turn)
        started = perf_counter()
        try:
            return self._make(request, since)
        finally:
            took_s = perf_counter() - started
            self._turn_spent_s += took_s
            self._mean_s += (took_s - self._mean_s) * (_MEAN_WEIGHT if self._mean_s else 1.0)

    def _start_turn(self) -> None:
        """Note that the loop has read what arrived."""
        self._turn_spent_s = 0.0

    def _make_next(self) -> None:
        request, since, context, answer = self._waiting[0]
        if not answer.cancelled():  # its client has disconnected
            try:
                answer.set_result(context.run(self._make_now, request, since))  # logs and traces name the request
            except Exception as error:
                answer.set_exception(error)
        self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._make_next)
