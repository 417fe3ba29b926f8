"""The queue of feedback events that wait for their upload: the interface, and a backend in memory.

An event is *waiting* from `add` to `take`, and then *in flight* until the caller of `take` acknowledges it or puts it back. An
event in flight is not returned by another `take`, so a page request and an uploader can share one outbox.
`pocketrank.device.offline.store` has the persistent backend.

An event with an age (`FeedbackEvent.age_ms`) grows older while it waits, by an `OutboxClock`: `take` returns it with its age at
that moment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from pocketrank.device.clock import DeviceClock, OutboxClock, wall_clock
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackEvent, as_code

__all__ = ["Held", "MemoryOutbox", "Outbox", "OutboxConfig", "user_key"]

_CHUNK = 32  # events removed under one lock, so that a swipe does not wait for long


@dataclass(frozen=True)
class OutboxConfig:
    """Bounds of an outbox. Events in flight are not counted: the caller of `take` bounds them."""

    waiting_max: int = 10_000
    """Maximum number of waiting events; beyond it the oldest are dropped. An hour of swiping has about a thousand."""
    bytes_max: int = 4 << 20
    """Maximum size of those events in bytes of MessagePack; an event with every field set has some 400."""
    event_bytes_max: int = 16 << 10
    """Maximum size of one event. A longer one is dropped at once, because it would displace many others."""
    ids_max: int = 4096
    """Number of ids of events that have left to remember, to recognize repeats. Ids of queued events are always known."""


class Outbox(ABC):
    """Events in order of arrival, each id of a user once. A full outbox drops the oldest. Safe to call from several threads."""

    dropped: int = 0
    """Events that were dropped unsent."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of waiting events, without those in flight."""

    @abstractmethod
    def add(self, event: FeedbackEvent) -> bool:
        """Queue `event`; False when its id is known, sent or not. Runs on the path of a swipe."""

    @abstractmethod
    def take(
        self, events_max: int | None = None, bytes_max: int | None = None, user_id: int | str | None = None
    ) -> tuple[FeedbackEvent, ...]:
        """Return the oldest waiting events within both bounds, which are then in flight. The first may exceed `bytes_max`.

        With a `user_id` only events of that user's are taken; without it, those of all users.
        """

    @abstractmethod
    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        """Remove events that the cloud has."""

    @abstractmethod
    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Queue taken events again, before all later ones. Sending one twice is harmless: the cloud applies an id once."""

    def tidy(self) -> None:
        """Do slow work that a backend may have postponed. The uploader calls this after each batch."""
        return


class Held(NamedTuple):
    """An event in an outbox. `place` numbers events in order of arrival; `body` is MessagePack, with the age that the event had
    when the outbox's clock was 0."""

    place: int
    key: str
    """`user_key` and the event's id, which is unique among those of its user"""
    item_id: int
    body: bytes


def user_key(user_id: int | str, event_id: str = "") -> str:
    """Return the key of a user's event, which begins with the key of no event."""
    return f"{as_code(user_id)}/{event_id}"


class MemoryOutbox(Outbox):
    """An outbox in memory. A persistent backend overrides `_save` and `_forget`, which are called under the lock."""

    def __init__(self, config: OutboxConfig | None = None, clock: DeviceClock = wall_clock) -> None:
        self._config, self._clock = config or OutboxConfig(), OutboxClock(clock)
        self._waiting: OrderedDict[str, Held] = OrderedDict()
        self._in_flight: dict[str, Held] = {}
        self._gone: dict[str, int] = {}  # items of events that have left, by key, oldest first
        self._bytes = self._place = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: FeedbackEvent) -> bool:
        """Queue `event`; False when its id is known, sent or not."""
        name, body = user_key(event.user_id, event.event_id), to_msgpack(_aged(event, -self._clock()))
        with self._lock:
            if name in self._waiting or name in self._gone or name in self._in_flight:
                return False
            if len(body) > self._config.event_bytes_max:
                self.dropped += 1
                self._remember(name, event.item_id)
                return True
            held = Held(self._place, name, event.item_id, body)
            self._place += 1
            self._wait(held)
            self._save(held)
            self._trim()
        return True

    def take(
        self, events_max: int | None = None, bytes_max: int | None = None, user_id: int | str | None = None
    ) -> tuple[FeedbackEvent, ...]:
        """Return the oldest waiting events, which are then in flight."""
        own = "" if user_id is None else user_key(user_id)
        taken: list[Held] = []
        size = 0
        with self._lock:
            for held in self._waiting.values():
                if not held.key.startswith(own):
                    continue
                size += len(held.body)
                if len(taken) == events_max or (bytes_max is not None and size > bytes_max and taken):
                    break
                taken.append(held)
            for held in taken:
                self._in_flight[held.key] = self._pop(held.key)
        now_ms = self._clock()
        return tuple(_aged(from_msgpack(held.body, FeedbackEvent), now_ms) for held in taken)

    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        """Remove events, in flight or waiting."""
        names = [user_key(event.user_id, event.event_id) for event in events]
        for start in range(0, len(names), _CHUNK):
            with self._lock:
                gone = []
                for name in names[start : start + _CHUNK]:
                    if (held := self._in_flight.pop(name, None)) is not None:
                        gone.append(held)
                    elif name in self._waiting:
                        gone.append(self._pop(name))
                self._leave(gone)

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Queue those of `events` that are in flight again, in their old order."""
        with self._lock:
            names = (user_key(event.user_id, event.event_id) for event in events)
            back = [self._in_flight.pop(name) for name in names if name in self._in_flight]
            newest = max((held.place for held in back), default=-1)
            # Older events may be waiting already: those of another batch that was put back before. Merge them.
            while self._waiting and (first := next(iter(self._waiting.values()))).place < newest:
                back.append(self._pop(first.key))
            for held in sorted(back, reverse=True):
                self._wait(held)
                self._waiting.move_to_end(held.key, last=False)
            self._trim()

    def _save(self, held: Held) -> None:
        """Save an event that was added."""

    def _forget(self, gone: Sequence[Held]) -> None:
        """Remove events that have left from where `_save` put them."""

    def _wait(self, held: Held) -> None:
        self._waiting[held.key] = held
        self._bytes += len(held.body)

    def _pop(self, name: str) -> Held:
        held = self._waiting.pop(name)
        self._bytes -= len(held.body)
        return held

    def _trim(self) -> None:
        gone = []
        while len(self._waiting) > self._config.waiting_max or self._bytes > self._config.bytes_max:
            gone.append(self._pop(next(iter(self._waiting))))
        self.dropped += len(gone)
        self._leave(gone)

    def _leave(self, gone: Sequence[Held]) -> None:
        for held in gone:
            self._remember(held.key, held.item_id)
        if gone:
            self._forget(gone)

    def _remember(self, name: str, item_id: int) -> None:
        self._gone[name] = item_id
        if len(self._gone) > self._config.ids_max:
            del self._gone[next(iter(self._gone))]


def _aged(event: FeedbackEvent, by_ms: int) -> FeedbackEvent:
    return event if event.age_ms is UNSET else replace(event, age_ms=event.age_ms + by_ms)
