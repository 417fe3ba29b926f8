"""Work that waits for the disk. All that arrives while a group is written is written together with the next.

A write costs the sync of the disk and the way to a thread and back; what is in it costs hardly anything. So under load much
shares one write, and what arrives alone is written at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from pocketrank.cloud.serving.load.page_queue import BusyError

__all__ = ["GroupQueue"]

_RETRY_S = 1.0

T = TypeVar("T")
R = TypeVar("R")


class GroupQueue(Generic[T, R]):
    """Bounded queue before `write`, which is called in a thread of its own. For one event loop."""

    def __init__(
        self,
        write: Callable[[Sequence[T]], Sequence[R | Exception]],
        name: str,
        *,
        size_max: int,
        group_max: int,
        size: Callable[[T], int] = lambda one: 1,
    ) -> None:
        """`write` returns a result or an error for each of its arguments, or raises one for all.

        At most `size_max` wait or are being written; what exceeds them is refused unless it is alone, under the `name` of the
        queue. A group has at most `group_max`, unless a single one is larger.
        """
        self._write, self._name, self._size_of = write, name, size
        self._size_max, self._group_max = size_max, group_max
        self._waiting = deque[tuple[T, asyncio.Future[R]]]()
        self._size = 0
        self._is_writing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._thread.submit(int).result()  # a thread that is started when memory is short may never begin, and is waited for

    def __len__(self) -> int:
        """Return the size of what waits or is being written."""
        return self._size

    async def __call__(self, one: T) -> R:
        """Return or raise what the write results in for `one`. Raises `BusyError`."""
        size = self._size_of(one)
        if self._size and self._size + size > self._size_max:
            raise BusyError(_RETRY_S, self._name)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()
        self._waiting.append((one, result))
        self._size += size
        if not self._is_writing and len(self._waiting) == 1:
            loop.call_soon(self._write_next)  # together with all that arrive before the loop's next turn
        return await result

    def _write_next(self) -> None:
        group = [self._waiting.popleft()]
        left = self._group_max - self._size_of(group[0][0])
        while self._waiting and (left := left - self._size_of(self._waiting[0][0])) >= 0:
            group.append(self._waiting.popleft())
        self._is_writing = True
        job = asyncio.get_running_loop().run_in_executor(self._thread, self._write, [one for one, _ in group])
        job.add_done_callback(lambda done: self._written(group, done))

    def _written(self, group: Sequence[tuple[T, asyncio.Future[R]]], done: asyncio.Future[Sequence[R | Exception]]) -> None:
        self._is_writing = False
        self._size -= sum(self._size_of(one) for one, _ in group)
        if self._waiting:
            self._write_next()
        failed = done.exception()
        results = [failed] * len(group) if failed else done.result()
        for (_, waits), result in zip(group, results, strict=True):
            if waits.cancelled():
                continue  # its client has disconnected; it is written all the same
            if isinstance(result, BaseException):
                waits.set_exception(result)
            else:
                waits.set_result(result)

    def close(self) -> None:
        """Wait until everything is written. The queue must not be called again."""
        self._thread.shutdown()
