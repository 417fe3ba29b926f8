"""Feedback that waits for its upload: the seam, and the backend that lasts as long as the process.

An event is *waiting* from `add` until it is taken; then it is *in flight* until whoever took it says what became of it. What is
in flight is not given to a second taker, so that a page request and an uploader can share one outbox. `store` has the backend
that outlives the process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackEvent

__all__ = ["Held", "MemoryOutbox", "Outbox", "OutboxConfig"]

_CHUNK = 32  # events forgotten under one lock, so that a swipe meanwhile waits for few


@dataclass(frozen=True)
class OutboxConfig:
    """How much waits. What is in flight is not counted: it is bounded by what its taker takes."""

    waiting_max: int = 10_000
    """Events that wait; beyond that the oldest are let go. An hour of swiping has about a thousand."""
    bytes_max: int = 4 << 20
    """Bytes of those events, as MessagePack: some 400 each with every field set."""
    event_bytes_max: int = 16 << 10
    """A longer event is let go at once, or one of megabytes would push out all others."""
    ids_max: int = 4096
    """Ids remembered of events that have left, to tell repeats. Those of events still here are always known."""


class Outbox(ABC):
    """Events in the order they came, each id once. Full, it lets the oldest go. Safe to call from several threads."""

    dropped: int = 0
    """events that were let go unsent"""

    @abstractmethod
    def __len__(self) -> int:
        """Events that wait; those in flight do not."""

    @abstractmethod
    def add(self, event: FeedbackEvent) -> bool:
        """Queue `event`; False when its id was there before, sent or not. On the path of a swipe."""

    @abstractmethod
    def take(self, events_max: int | None = None, bytes_max: int | None = None) -> tuple[FeedbackEvent, ...]:
        """The oldest waiting events, at most so many and so large together (one is given whatever its size), now in flight."""

    @abstractmethod
    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        """The cloud has these: forget them."""

    @abstractmethod
    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Taken events that could not be sent wait again, before those that came since. The cloud applies an id once."""

    def tidy(self) -> None:
        """Slow work that a backend may have put off; whoever uploads calls it now and then."""
        return


class Held(NamedTuple):
    """An event in an outbox. `place` counts up in the order of adding; `body` is MessagePack."""

    place: int
    event_id: str
    item_id: int
    body: bytes


class MemoryOutbox(Outbox):
    """In memory. A backend that keeps events elsewhere too overrides `_save` and `_forget`, which are called under the lock."""

    def __init__(self, config: OutboxConfig | None = None) -> None:
        self._config = config or OutboxConfig()
        self._waiting: OrderedDict[str, Held] = OrderedDict()
        self._in_flight: dict[str, Held] = {}
        self._gone: dict[str, int] = {}  # ids and items of events that have left, oldest first
        self._bytes = self._place = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: FeedbackEvent) -> bool:
        """Queue `event`; False when its id was there before, sent or not."""
        name, body = event.event_id, to_msgpack(event)
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

    def take(self, events_max: int | None = None, bytes_max: int | None = None) -> tuple[FeedbackEvent, ...]:
        """The oldest waiting events, now in flight."""
        taken: list[bytes] = []
        size = 0
        with self._lock:
            while self._waiting and (events_max is None or len(taken) < events_max):
                held = next(iter(self._waiting.values()))
                size += len(held.body)
                if bytes_max is not None and size > bytes_max and taken:
                    break
                self._in_flight[held.event_id] = self._pop(held.event_id)
                taken.append(held.body)
        return tuple(from_msgpack(body, FeedbackEvent) for body in taken)

    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        """Forget these, whether in flight or waiting."""
        names = [event.event_id for event in events]
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
        """What is in flight of these waits again, in its old place."""
        with self._lock:
            back = [self._in_flight.pop(e.event_id) for e in events if e.event_id in self._in_flight]
            newest = max((held.place for held in back), default=-1)
            # of another batch, which was put back before
            while self._waiting and (first := next(iter(self._waiting.values()))).place < newest:
                back.append(self._pop(first.event_id))
            for held in sorted(back, reverse=True):
                self._wait(held)
                self._waiting.move_to_end(held.event_id, last=False)
            self._trim()

    def _save(self, held: Held) -> None:
        """Make `held` durable."""

    def _forget(self, gone: Sequence[Held]) -> None:
        """These have left."""

    def _wait(self, held: Held) -> None:
        self._waiting[held.event_id] = held
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
            self._remember(held.event_id, held.item_id)
        if gone:
            self._forget(gone)

    def _remember(self, name: str, item_id: int) -> None:
        self._gone[name] = item_id
        if len(self._gone) > self._config.ids_max:
            del self._gone[next(iter(self._gone))]
