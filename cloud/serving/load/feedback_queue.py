"""Feedback that waits for the disk. All batches that arrive while one is written are written together with the next.

A write costs the sync of the disk and the way to a thread and back; its events cost hardly anything. So under load many batches
share one write, and a batch that arrives alone is written at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.serving.load.page_queue import BusyError
from pocketrank.cloud.streams.feedback_log import FeedbackLogError
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt

__all__ = ["FeedbackQueue"]

_WRITE_MAX = 64
"""Largest number of batches in one write."""
_RETRY_S = 1.0


_Waiting = tuple[Sequence[FeedbackEvent], asyncio.Future[FeedbackReceipt]]


class FeedbackQueue:
    """Bounded queue of feedback batches before `intake`. For one event loop."""

    def __init__(self, intake: FeedbackIntake, batches_max: int) -> None:
        """At most `batches_max` batches wait or are being written; the next one is refused."""
        self._intake, self._batches_max = intake, batches_max
        self._waiting: list[_Waiting] = []
        self._writing = 0
        """Batches that are being written."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")

    async def __call__(self, events: Sequence[FeedbackEvent], user_id: int | None = None) -> FeedbackReceipt:
        """Write those of `events` that the contract allows, and return the receipt. Raises `BusyError`, `FeedbackLogError`.

        `user_id` is the one user for whom the sender may speak; None if for any.
        """
        events, refused = self._intake.admit(events, user_id)
        if len(self._waiting) + self._writing >= self._batches_max:
            raise BusyError(_RETRY_S, "feedback")
        loop = asyncio.get_running_loop()
        receipt: asyncio.Future[FeedbackReceipt] = loop.create_future()
        self._waiting.append((events, receipt))
        if not self._writing and len(self._waiting) == 1:
            loop.call_soon(self._write)  # together with all that arrive before the loop's next turn
        written = await receipt
        return replace(written, refused=refused) if refused else written

    def _write(self) -> None:
        batches, self._waiting = self._waiting[:_WRITE_MAX], self._waiting[_WRITE_MAX:]
        self._writing = len(batches)
        job = asyncio.get_running_loop().run_in_executor(self._thread, self._intake.together, [events for events, _ in batches])
        job.add_done_callback(lambda done: self._written(batches, done))

    def _written(self, batches: Sequence[_Waiting], done: asyncio.Future[list[FeedbackReceipt | FeedbackLogError]]) -> None:
        self._writing = 0
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
