"""Feedback waits for the disk: what comes while a batch is written is written with the next, all of it at once.

A batch costs the sync of the disk and the way to a thread and back, hardly its events. So under load many share one of each,
and one that comes alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.serving.load.page_queue import BusyError
from pocketrank.cloud.streams.feedback_log import FeedbackLogError
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt

__all__ = ["FeedbackQueue"]

_TOGETHER = 64
"""Most batches of one write."""
_RETRY_S = 1.0


class _Waiting(NamedTuple):
    events: Sequence[FeedbackEvent]
    receipt: asyncio.Future[FeedbackReceipt]


class FeedbackQueue:
    """The line before `intake`. For one event loop."""

    def __init__(self, intake: FeedbackIntake, most: int) -> None:
        """`most` batches may wait or be under way; the next is refused."""
        self._intake, self._most = intake, most
        self._waiting: list[_Waiting] = []
        self._writing = 0
        """batches under way"""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")

    async def __call__(self, events: Sequence[FeedbackEvent], path: str) -> FeedbackReceipt:
        """Take in `events`, which came at `path` of the request. Raises `BusyError`, and what `FeedbackIntake` raises."""
        self._intake.check(events, path)
        if len(self._waiting) + self._writing >= self._most:
            raise BusyError(_RETRY_S)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(events, loop.create_future())
        self._waiting.append(waiting)
        if not self._writing and len(self._waiting) == 1:
            loop.call_soon(self._write)  # with all that has arrived by then
        return await waiting.receipt

    def _write(self) -> None:
        batches, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
        self._writing = len(batches)
        job = asyncio.get_running_loop().run_in_executor(self._thread, self._intake.together, [one.events for one in batches])
        job.add_done_callback(lambda done: self._written(batches, done))

    def _written(self, batches: Sequence[_Waiting], done: asyncio.Future[list[FeedbackReceipt | FeedbackLogError]]) -> None:
        self._writing = 0
        if self._waiting:
            self._write()
        failed = done.exception()
        results = [failed] * len(batches) if failed else done.result()
        for one, result in zip(batches, results, strict=True):
            if one.receipt.cancelled():
                continue  # nobody waits for it; it is kept all the same
            if isinstance(result, BaseException):
                one.receipt.set_exception(result)
            else:
                one.receipt.set_result(result)

    def close(self) -> None:
        """Wait for what is under way. Nothing may come any more."""
        self._thread.shutdown()
