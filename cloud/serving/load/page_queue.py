"""Pages wait in line, and one that would wait too long is sent away at once.

Pages are made one at a time in the event loop itself, which was 5 % faster a page than handing each to a thread and back (p10
of 1,500 alternated requests); more cores are for more processes (`pocketrank.cloud.serving.process.workers`). Between two
pages the loop takes in what has arrived, so the line knows its length and every page its age.

Errors::

    WireError
    └── BusyError              429: too many pages wait; knows after how many seconds there may be room
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

from pocketrank.cloud.serving.http.wire import WireError
from pocketrank.cloud.serving.load.price import ComputePrice

__all__ = ["TURN_S", "BusyError", "PageQueue"]

_FORGET = 0.1
"""Weight of the latest page in the mean time of a page."""
_RETRY_MAX_S = 30
TURN_S = 0.005
"""Time of pages that are made at once, in the order in which they come, before the loop looks for what else has arrived; what
comes then waits in line. A place in line costs 55 µs, most of it for turns of the loop: with a constant page on one core, 140
µs of CPU a request and 90 without."""

A = TypeVar("A")
R = TypeVar("R")


class BusyError(WireError):
    """Too many pages wait."""

    def __init__(self, wait_s: float) -> None:
        self.retry_after_s = min(_RETRY_MAX_S, max(1, math.ceil(wait_s)))
        headers = {"Retry-After": str(self.retry_after_s)}
        super().__init__(429, "$", "room in the line", f"a wait of {round(1e3 * wait_s)} ms", headers)


class _Waiting(NamedTuple, Generic[A, R]):
    asked: A
    since: float
    context: Context
    answer: asyncio.Future[R]


class PageQueue(Generic[A, R]):
    """The line before `make`. For one event loop."""

    def __init__(self, make: Callable[[A, float], R], queue_s: float, price: ComputePrice) -> None:
        """`make` is given what is asked and when that came. Who would wait longer than `queue_s` is refused."""
        self._make, self._queue_s, self._price = make, queue_s, price
        self._waiting: deque[_Waiting[A, R]] = deque()
        self._of_one, self._coming, self._spent = 0.0, 0, 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self) -> None:
        """Raises `BusyError` when one who comes now would wait too long. To be asked before anything of a request is done."""
        if (wait := (len(self._waiting) + self._coming) * self._of_one) > self._queue_s:
            raise BusyError(wait)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """For one who entered and has something else done first, as feedback written: it has its place in line meanwhile."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def __call__(self, asked: A, since: float) -> R:
        """What `make` answers or raises."""
        self._price.enter()
        try:
            if not self._waiting and self._spent < TURN_S:
                return self._made(asked, since)
            loop = asyncio.get_running_loop()
            waiting = _Waiting(asked, since, copy_context(), loop.create_future())
            self._waiting.append(waiting)
            if len(self._waiting) == 1:
                loop.call_soon(self._next)
            answer: R = await waiting.answer
            return answer
        finally:
            self._price.leave()

    def _made(self, asked: A, since: float) -> R:
        if not self._spent:
            asyncio.get_running_loop().call_soon(self._turn)
        started = perf_counter()
        try:
            return self._make(asked, since)
        finally:
            took = perf_counter() - started
            self._spent += took
            self._of_one += (took - self._of_one) * (_FORGET if self._of_one else 1.0)

    def _turn(self) -> None:
        """The loop has looked for what arrived."""
        self._spent = 0.0

    def _next(self) -> None:
        asked, since, context, answer = self._waiting[0]
        if not answer.cancelled():  # else nobody waits for it
            try:
                answer.set_result(context.run(self._made, asked, since))  # logs and traces name the request
            except Exception as error:
                answer.set_exception(error)
        self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
