"""Feedback that waits for the disk. All batches that arrive while one is written are written together with the next.

A write costs the sync of the disk and the way to a thread and back; its events cost hardly anything. So under load many batches
share one write, and a batch that arrives alone is written at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.serving.load.page_queue import BusyError
from pocketrank.cloud.streams.feedback_log import FeedbackLogError
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt

__all__ = ["FeedbackQueue"]

_WRITE_MAX = 1000
"""Largest number of events in one write, unless a single batch has more. A page waits for the thread that writes whenever that
has the interpreter."""
_RETRY_S = 1.0


_Waiting = tuple[Sequence[FeedbackEvent], asyncio.Future[FeedbackReceipt]]


class FeedbackQueue:
    """Bounded queue of feedback batches before `intake`. For one event loop."""

    def __init__(self, intake: FeedbackIntake, events_max: int) -> None:
        """At most `events_max` events wait or are being written; a batch that exceeds them is refused unless it is alone."""
        self._intake, self._events_max = intake, events_max
        self._waiting = deque[_Waiting]()
        self._size = 0
        """Events that wait or are being written; a batch without any counts as one."""
        self._is_writing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        self._thread.submit(int).result()  # a thread that is started when memory is short may never begin, and is waited for

    async def __call__(self, events: Sequence[FeedbackEvent], user_id: int | None = None) -> FeedbackReceipt:
        """Write those of `events` that the contract allows, and return the receipt. Raises `BusyError`, `FeedbackLogError`.

        `user_id` is the one user for whom the sender may speak; None if for any.
        """
        events, refused = self._intake.admit(events, user_id)
        if self._size and self._size + _size(events) > self._events_max:
            raise BusyError(_RETRY_S, "feedback")
        loop = asyncio.get_running_loop()
        receipt: asyncio.Future[FeedbackReceipt] = loop.create_future()
        self._waiting.append((events, receipt))
        self._size += _size(events)
        if not self._is_writing and len(self._waiting) == 1:
            loop.call_soon(self._write)  # together with all that arrive before the loop's next turn
        written = await receipt
        return replace(written, refused=refused) if refused else written

    def _write(self) -> None:
        batches = [self._waiting.popleft()]
        left = _WRITE_MAX - _size(batches[0][0])
        while self._waiting and (left := left - _size(self._waiting[0][0])) >= 0:
            batches.append(self._waiting.popleft())
        self._is_writing = True
        job = asyncio.get_running_loop().run_in_executor(self._thread, self._intake.together, [events for events, _ in batches])
        job.add_done_callback(lambda done: self._written(batches, done))

    def _written(self, batches: Sequence[_Waiting], done: asyncio.Future[list[FeedbackReceipt | FeedbackLogError]]) -> None:
        self._is_writing = False
        self._size -= sum(_size(events) for events, _ in batches)
        if self._waiting:
            self._write()
        failed = done.exception()
        results = [failed] * len(batches) if failed else done.result()
        for (_, receipt), result in zip(batches, results, strict=True):
            if receipt.cancelled():
                continue  # its client has disconnected; the events are kept all the same
            if isinstance(result, BaseException):
                receipt.set_exception(result)
            else:
                receipt.set_result(result)

    def close(self) -> None:
        """Wait until everything is written. The queue must not be called again."""
        self._thread.shutdown()


def _size(events: Sequence[FeedbackEvent]) -> int:
    return max(1, len(events))
