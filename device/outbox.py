"""Feedback that waits for its upload."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from device.contract import FeedbackEvent

__all__ = ["MemoryOutbox", "Outbox"]


class MemoryOutbox:
    """Events in the order they came, each id once. Full, it lets the oldest go."""

    def __init__(self, waiting_max: int, ids_max: int) -> None:
        """`waiting_max` events wait at most; the last `ids_max` ids are remembered to tell repeats."""
        self._waiting: deque[FeedbackEvent] = deque()
        self._ids: dict[str, None] = {}
        self._waiting_max, self._ids_max = waiting_max, ids_max
        self.dropped = 0
        """events that were let go unsent"""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: FeedbackEvent) -> bool:
        """Queue `event`; False when its id was there before, sent or not."""
        if event.event_id in self._ids:
            return False
        self._ids[event.event_id] = None
        if len(self._ids) > self._ids_max:
            del self._ids[next(iter(self._ids))]
        self._waiting.append(event)
        self._trim()
        return True

    def take(self, most: int | None = None) -> tuple[FeedbackEvent, ...]:
        """The oldest waiting events, at most `most`, which are then under way."""
        count = len(self._waiting) if most is None else min(most, len(self._waiting))
        return tuple(self._waiting.popleft() for _ in range(count))

    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        """The cloud has these."""

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Events that were drained and could not be sent, before those that came since. The cloud applies an id once."""
        self._waiting.extendleft(reversed(tuple(events)))
        self._trim()

    def _trim(self) -> None:
        while len(self._waiting) > self._waiting_max:
            self._waiting.popleft()
            self.dropped += 1


Outbox = MemoryOutbox
