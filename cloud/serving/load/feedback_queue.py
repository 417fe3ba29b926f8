"""Feedback that waits for the disk (`group_queue`)."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.serving.load.group_queue import GroupQueue
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt

__all__ = ["FeedbackQueue"]

_WRITE_MAX = 1000
"""Largest number of events in one write, unless a single batch has more. A page waits for the thread that writes whenever that
has the interpreter."""


class FeedbackQueue:
    """Bounded queue of feedback batches before `intake`. For one event loop."""

    def __init__(self, intake: FeedbackIntake, events_max: int) -> None:
        """At most `events_max` events wait or are being written; a batch that exceeds them is refused unless it is alone."""
        self._intake = intake
        self._queue: GroupQueue[Sequence[FeedbackEvent], FeedbackReceipt] = GroupQueue(
            intake.together, "feedback", size_max=events_max, group_max=_WRITE_MAX, size=_size
        )

    async def __call__(self, events: Sequence[FeedbackEvent], user_id: int | None = None) -> FeedbackReceipt:
        """Write those of `events` that the contract allows, and return the receipt. Raises `BusyError`, `FeedbackLogError`.

        `user_id` is the one user for whom the sender may speak; None if for any.
        """
        events, refused = self._intake.admit(events, user_id)
        written = await self._queue(events)
        return replace(written, refused=refused) if refused else written

    def close(self) -> None:
        """Wait until everything is written. The queue must not be called again."""
        self._queue.close()


def _size(events: Sequence[FeedbackEvent]) -> int:
    return max(1, len(events))
