"""Pages as they were served on their way to the event log. An answer waits until its page is there.

A page that cannot be kept is answered all the same, and says so: what users do with it teaches nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic

from pocketrank.cloud.serving.load.group_queue import GroupQueue
from pocketrank.cloud.serving.load.page_queue import BusyError
from pocketrank.cloud.streams.event_log import EventLog, EventLogError, NewRecord
from pocketrank.cloud.streams.messages import ServedPage
from pocketrank.device.codec import to_msgpack

__all__ = ["PAGE_NOT_KEPT", "PageLog"]

PAGE_NOT_KEPT = "page_not_kept"
"""Reason of a degraded page that is not in the event log."""
_WAITING_MAX = 2000
_GROUP_MAX = 200
_SAID_EVERY_S = 10.0

_logger = logging.getLogger(__name__)


class PageLog:
    """Writer of pages into the topic `pages` of `log`. For one event loop."""

    def __init__(self, log: EventLog) -> None:
        self._log, self._said_at = log, -_SAID_EVERY_S
        self._queue: GroupQueue[ServedPage, None] = GroupQueue(
            self._write, "pages", size_max=_WAITING_MAX, group_max=_GROUP_MAX
        )

    async def __call__(self, page: ServedPage) -> bool:
        """Return whether the page is in the log."""
        try:
            if not len(self._queue) and self._log.append_at_once("pages", [_record(page)]):
                return True  # the way to a thread and back would take several times as long
            await self._queue(page)
        except (BusyError, EventLogError) as error:
            if monotonic() - self._said_at > _SAID_EVERY_S:
                self._said_at = monotonic()
                _logger.error("pages are served that are not in the event log: %s", error)
            return False
        return True

    def _write(self, pages: Sequence[ServedPage]) -> list[Exception | None]:
        self._log.append("pages", [_record(page) for page in pages])
        return [None] * len(pages)

    def close(self) -> None:
        """Wait until everything is written. It must not be called again."""
        self._queue.close()


def _record(page: ServedPage) -> NewRecord:
    return NewRecord(page.inputs.user_id, to_msgpack(page))
