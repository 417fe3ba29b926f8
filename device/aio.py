"""`CloudClient` and `FeedSession` for asyncio: the same calls as coroutines, with the same results and errors.

Each object here wraps a synchronous one and calls it on a thread of its own, one call at a time in the order they were made, so
that no model, disk or network blocks the event loop. Several event loops may use one object, one after the other.

To cancel a coroutine is safe:

- a call of the client that has not begun is skipped. One that has begun goes on to its end, within the client's `timeout_s`, so
  that the next call finds a connection in order. Its result is lost, and what it was to send is still the caller's;
- a call of the session is made all the same, so that no feedback is lost. What a cancelled `request` or `drain_feedback` took
  from the queue is queued again. An item that a cancelled `next` would have shown counts as shown.

A call costs the way to another thread and back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.network.client import CloudClient
from pocketrank.device.session import FeedSession, Refill

__all__ = ["AsyncCloudClient", "AsyncFeedSession"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", CloudClient, FeedSession)


class _Async(Generic[S]):
    """Wrapper of `sync` with a thread on which its calls take turns."""

    _cancellable: ClassVar[bool]

    def __init__(self, sync: S) -> None:
        self._sync: S = sync
        self._turns = self._new_turns()

    def _new_turns(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, type(self).__name__)  # its thread begins with the first call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the wrapped object after all calls made before this, and end the thread. The next call begins another."""
        turns, self._turns = self._turns, self._new_turns()
        last = turns.submit(self._sync.close)
        turns.shutdown(wait=False)  # cancelled or not, what was submitted is still done
        await asyncio.shield(asyncio.wrap_future(last))
        turns.shutdown()

    async def _run(self, undo: Callable[[R], None] | None, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await `call` in its turn. `undo` gets the result of a call that was cancelled meanwhile."""
        job = self._turns.submit(call, *args, **kwargs)
        answer = asyncio.wrap_future(job)
        try:
            return await (answer if self._cancellable else asyncio.shield(answer))
        except asyncio.CancelledError:
            if undo is not None:
                job.add_done_callback(lambda job: None if job.exception() else undo(job.result()))
            raise


def _call(
    method: Callable[Concatenate[S, P], R], undo: Callable[[S, R], None] | None = None
) -> Callable[Concatenate[_Async[S], P], Coroutine[Any, Any, R]]:
    """Return `method` of the synchronous class as a coroutine method."""

    @wraps(method)
    async def call(self: _Async[S], /, *args: P.args, **kwargs: P.kwargs) -> R:
        sync = self._sync
        return await self._run(None if undo is None else lambda answer: undo(sync, answer), method, sync, *args, **kwargs)

    return call


class _Read(Generic[R]):
    """Property of a session that is read without work, and so without a coroutine."""

    def __init__(self, read: Callable[[FeedSession], R]) -> None:
        self._read = read

    def __get__(self, feed: _Async[FeedSession], owner: type[_Async[FeedSession]]) -> R:
        return self._read(feed._sync)


class AsyncCloudClient(_Async[CloudClient]):
    """`CloudClient` for asyncio; the module says what cancelling does.

    A download takes its turn like any call. Give it a client of its own, or pages wait for it.
    """

    _cancellable = True

    page = _call(CloudClient.page)
    send_feedback = _call(CloudClient.send_feedback)
    health = _call(CloudClient.health)
    fetch = _call(CloudClient.fetch)
    fetch_file = _call(CloudClient.fetch_file)
    fetch_files = _call(CloudClient.fetch_files)
    download_bundle = _call(CloudClient.download_bundle)


def _remaining(session: FeedSession) -> NDArray[np.int64]:
    """Return the item ids of what was not shown yet, in the current order, best first."""
    return session.remaining


class AsyncFeedSession(_Async[FeedSession]):
    """`FeedSession` for asyncio; the module says what cancelling does. `remaining` may run the model, so it is a coroutine."""

    _cancellable = False

    user_id = _Read(lambda session: session.user_id)
    session_id = _Read(lambda session: session.session_id)
    counters = _Read(lambda session: session.counters)
    position = _Read(lambda session: session.position)
    page_id = _Read(lambda session: session.page_id)
    form = _Read(lambda session: session.form)

    remaining = _call(_remaining)
    take = _call(FeedSession.take)
    next = _call(FeedSession.next)
    feedback = _call(FeedSession.feedback)
    wants_page = _call(FeedSession.wants_page)
    request = _call(FeedSession.request, FeedSession.request_failed)
    request_failed = _call(FeedSession.request_failed)
    drain_feedback = _call(FeedSession.drain_feedback, FeedSession.put_back)
    acknowledge = _call(FeedSession.acknowledge)
    put_back = _call(FeedSession.put_back)
    use = _call(FeedSession.use)
    restore = _call(FeedSession.restore)
    buffered = _call(FeedSession.buffered)
    own_id = _call(FeedSession.own_id)

    async def refill(self, client: AsyncCloudClient, scene: int = 0) -> Refill:
        """Do as `FeedSession.refill`, on the client's thread, so that swipes go on meanwhile."""
        return await client._run(None, self._sync.refill, client._sync, scene)

    async def flush(self, client: AsyncCloudClient) -> int:
        """Do as `FeedSession.flush`, on the client's thread."""
        return await client._run(None, self._sync.flush, client._sync)
