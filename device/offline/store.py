"""The persistent data of a device: unsent feedback, pages, the items that were shown, and small named states.

All of it is in one file (`pocketrank.device.offline.database`, whose errors this module raises too). Every row has a checksum;
a damaged row is skipped and counted. Everything is bounded, and the oldest rows are dropped first.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from pocketrank.device.clock import DeviceClock, OutboxClock, SavedClock, wall_clock
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError, DecodeError, FeedbackEvent, Page
from pocketrank.device.offline.database import Database
from pocketrank.device.offline.outbox import Held, MemoryOutbox, OutboxConfig, user_key

__all__ = ["DeviceStore", "DeviceStoreConfig", "KeptPage", "StoredOutbox"]

# Strict tables, so that the check of a file also finds values of another type.
_SCHEMA = (
    "CREATE TABLE event (place INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE TABLE gone (slot INTEGER PRIMARY KEY, place INTEGER NOT NULL, event_id TEXT NOT NULL, item_id INTEGER NOT NULL)"
    " STRICT",
    "CREATE TABLE page (place INTEGER PRIMARY KEY, page_id TEXT UNIQUE, ms INTEGER NOT NULL, body BLOB NOT NULL) STRICT",
    "CREATE TABLE state (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT",
)
_ADD = "REPLACE INTO event VALUES (?, ?)"
_STATE, _SET_STATE = "SELECT body FROM state WHERE name = ?", "REPLACE INTO state VALUES (?, ?)"
_CLOCK = "pocketrank/clock"  # name of the state that the outbox's clock is kept in
_SUM_BYTES = 4  # length of the checksum before each row's data
_SAVE_CHUNK = 64  # rows that are saved late under one lock, so that a swipe does not wait for long


@dataclass(frozen=True)
class DeviceStoreConfig:
    """Bounds of a store. With the defaults the file stays below 10 MB, and so does its write-ahead file."""

    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    """Bounds of the waiting feedback."""
    pages_max: int = 4
    """Maximum number of pages: the current one, and some whose rest can be shown when there is nothing else."""
    pages_bytes_max: int = 1 << 20
    """Maximum size of all pages in bytes; one of 60 candidates has ten thousand. A single larger page is not saved."""
    shown_max: int = 256
    """Number of items to remember that earlier sessions showed; a session remembers as many (`SessionConfig.shown_max`)."""
    state_bytes_max: int = 1 << 20
    """Maximum size of one named state in bytes; a user's personal layer has a few thousand."""
    wal_bytes: int = 1 << 20
    """Size in bytes at which the write-ahead file is folded in, about every 200 swipes. A swipe at that moment waits 1 ms."""


class KeptPage(NamedTuple):
    """A page from the file."""

    page: Page
    age_ms: int
    """Time since it arrived, by the device's clock; a page from a time that is still to come is as old as that is far."""


class StoredOutbox(MemoryOutbox):
    """An outbox whose events are in the file too: they survive a kill -9 once `add` returns.

    Events that cannot be written (a full disk) wait in memory, are counted as `unsaved`, and are written by a later `tidy`.
    """

    def __init__(self, database: Database, config: OutboxConfig, clock: DeviceClock = wall_clock) -> None:
        super().__init__(config, clock)
        self._database = database
        self._unsaved: dict[int, Held] = {}
        # For events that have left and are not yet deleted from the file: their place, and the row for `gone`.
        self._left: deque[tuple[int, tuple[int, int, str, int]]] = deque(maxlen=config.ids_max)
        self.damaged = 0
        """Events in the file that could not be read."""
        ids = database.read("SELECT place, event_id, item_id FROM gone ORDER BY place")
        self._gone.update((name, item) for _, name, item in ids[-config.ids_max :])
        self._gone_place = ids[-1][0] + 1 if ids else 0
        damaged: list[int] = []
        latest_ms: int | None = None  # when the last event that waits was shown
        for place, sealed in database.read("SELECT place, body FROM event ORDER BY place"):
            self._place = place + 1
            try:
                body = _unseal(sealed)
                event = from_msgpack(body, FeedbackEvent)
                self._wait(Held(place, user_key(event.user_id, event.event_id), event.item_id, body))
                if event.age_ms is not UNSET:
                    latest_ms = max(-event.age_ms, -event.age_ms if latest_ms is None else latest_ms)
            except ContractError:
                damaged.append(place)
        self.damaged = len(damaged)
        if damaged:
            database.write_all([("DELETE FROM event WHERE place = ?", [(place,) for place in damaged])])
        if latest_ms is not None:
            self._clock = OutboxClock(clock, _read_clock(database), latest_ms)
        self._saved_clock: SavedClock | None = None
        self._save_clock()
        self._trim()

    @property
    def unsaved(self) -> int:
        """Number of events that would not survive a kill, because they could not be written."""
        return len(self._unsaved)

    def items(self, user_id: int | str | None = None) -> list[int]:
        """Return the items of all events in the outbox or remembered, each once, the latest last. See `take` for `user_id`."""
        own = "" if user_id is None else user_key(user_id)
        with self._lock:
            here = sorted((*self._in_flight.values(), *self._waiting.values()))
            all_events = (*self._gone.items(), *((held.key, held.item_id) for held in here))
        items = [item for key, item in all_events if key.startswith(own)]
        return list(dict.fromkeys(reversed(items)))[::-1]

    def tidy(self) -> None:
        """Fold in the write-ahead file, replace a damaged file, and save what is unsaved. Not for the thread of the swipes."""
        replaced = self._database.tidy()
        with self._lock:
            if replaced:  # everything is to be saved again, in the new file
                self._unsaved = {held.place: held for held in (*self._in_flight.values(), *self._waiting.values())}
                self._left.clear()
                self._saved_clock = None
                for name, item in self._gone.items():
                    self._leaving(name, item)
        while self._unsaved:
            with self._lock:
                some = list(islice(self._unsaved.values(), _SAVE_CHUNK))
                if not self._database.write_all([(_ADD, [(held.place, _seal(held.body)) for held in some])]):
                    return
                for held in some:
                    del self._unsaved[held.place]
        while self._left:
            with self._lock:
                if not self._save_left():
                    return
        self._save_clock()

    def _save(self, held: Held) -> None:
        self._save_clock()
        if not self._database.write(_ADD, (held.place, _seal(held.body))):
            self._unsaved[held.place] = held

    def _save_clock(self) -> None:
        """Save the clock if it has changed: once for each start of the process, and each time that the wall clock was set."""
        clock = self._clock.saved()
        if clock != self._saved_clock and self._database.write(_SET_STATE, (_CLOCK, _seal(msgspec.msgpack.encode(clock)))):
            self._saved_clock = clock

    def _forget(self, gone: Sequence[Held]) -> None:
        for held in gone:
            self._unsaved.pop(held.place, None)
            self._leaving(held.key, held.item_id, held.place)
        # When this fails, a start after a kill sends them again, and the cloud recognizes their ids.
        self._save_left()

    def _leaving(self, name: str, item_id: int, event_place: int = -1) -> None:
        place, self._gone_place = self._gone_place, self._gone_place + 1
        self._left.append((event_place, (place % self._config.ids_max, place, name, item_id)))

    def _save_left(self) -> bool:
        some = list(islice(self._left, _SAVE_CHUNK))
        kept = self._database.write_all([
            ("DELETE FROM event WHERE place = ?", [(place,) for place, _ in some]),
            ("REPLACE INTO gone VALUES (?, ?, ?, ?)", [row for _, row in some]),
        ])  # fmt: skip
        for _ in some if kept else ():
            self._left.popleft()
        return kept


class DeviceStore:
    """The file at `path`, created when missing. Safe to call from several threads. Raises `DatabaseError`.

    The accounts of an app may share a file: a session sees the pages, the waiting feedback and the shown items of its own user
    only. The bounds are those of the file, so the pages of one account displace those of another.

    No method raises an error of the disk: `save_page` and `set_state` return whether they saved.
    """

    def __init__(self, path: Path, config: DeviceStoreConfig | None = None, *, clock: DeviceClock = wall_clock) -> None:
        """`clock` is the device's; an app whose sessions have another clock leaves it."""
        self._config = config or DeviceStoreConfig()
        self._database = Database(path, _SCHEMA, self._config.wal_bytes)
        self.outbox = StoredOutbox(self._database, self._config.outbox, clock)
        """The waiting feedback."""
        self._lock = Lock()
        self.pages_dropped = 0
        """Pages that were dropped for newer ones, or not saved because of their size."""
        self._damaged_rows = 0
        self._pages = deque(self._database.read("SELECT place, length(body) FROM page ORDER BY place"))
        self._page_place = self._pages[-1][0] + 1 if self._pages else 0

    def __enter__(self) -> DeviceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Save what is unsaved and close the file. Later events are kept in memory only."""
        self.outbox.tidy()
        self._database.close()

    @property
    def damaged_files(self) -> int:
        """Number of damaged files that were moved aside; the last one has the suffix `.damaged`."""
        return self._database.damaged

    @property
    def damaged_rows(self) -> int:
        """Number of events, pages and states in the file that could not be read."""
        return self._damaged_rows + self.outbox.damaged

    @property
    def writes_failed(self) -> int:
        """Number of writes that failed."""
        return self._database.failed

    def save_page(self, user_id: int | str, page: Page, now_ms: int) -> bool:
        """Save a page of that user's that arrived at `now_ms` of the device's clock; False when it was not saved.

        A page that is already in the file stays there with its age.
        """
        body, key = _seal(to_msgpack(page)), user_key(user_id, page.page_id)
        with self._lock:
            if len(body) > self._config.pages_bytes_max:
                self.pages_dropped += 1
                return False
            pages = deque([*self._pages, (self._page_place, len(body))])
            # Drop the oldest pages until both bounds hold.
            old: list[int] = []
            while len(pages) > self._config.pages_max or sum(size for _, size in pages) > self._config.pages_bytes_max:
                old.append(pages.popleft()[0])
            if self._database.read("SELECT 1 FROM page WHERE page_id = ?", (key,)):
                return True
            kept = self._database.write_all([
                ("INSERT INTO page VALUES (?, ?, ?, ?)", [(self._page_place, key, now_ms, body)]),
                ("DELETE FROM page WHERE place = ?", [(place,) for place in old]),
            ])  # fmt: skip
            if kept:
                self._pages = pages
                self._page_place += 1
                self.pages_dropped += len(old)
            return kept

    def pages(self, user_id: int | str, now_ms: int, *, stale: bool = False) -> Iterator[KeptPage]:
        """Yield that user's pages whose time to live is not over, newest first; with `stale` all pages of the user."""
        of_user = "SELECT place FROM page WHERE substr(page_id, 1, ?) = ? ORDER BY place DESC"
        for (place,) in self._database.read(of_user, (len(own := user_key(user_id)), own)):
            for taken_ms, sealed in self._database.read("SELECT ms, body FROM page WHERE place = ?", (place,)):
                try:
                    page = from_msgpack(_unseal(sealed), Page)
                except ContractError:
                    self._damaged_rows += 1
                    continue
                if stale or abs(now_ms - taken_ms) < page.ttl_ms:
                    yield KeptPage(page, abs(now_ms - taken_ms))

    def shown_items(self, user_id: int | str | None = None) -> list[int]:
        """Return the items of the last `shown_max` impressions with feedback, sent or not, oldest first.

        With a `user_id` only those of that user.
        """
        return self.outbox.items(user_id)[-self._config.shown_max :]

    def state(self, name: str) -> bytes | None:
        """Return the state `name`, None when it is missing or damaged."""
        for (sealed,) in self._database.read(_STATE, (name,)):
            try:
                return _unseal(sealed)
            except ContractError:
                self._damaged_rows += 1
        return None

    def set_state(self, name: str, data: bytes) -> bool:
        """Save `data` as the state `name`; False when it is too long or cannot be written, and the old state stays."""
        if len(data) > self._config.state_bytes_max:
            return False
        return self._database.write(_SET_STATE, (name, _seal(data)))


def _read_clock(database: Database) -> SavedClock:
    for (sealed,) in database.read(_STATE, (_CLOCK,)):
        with contextlib.suppress(ContractError, msgspec.MsgspecError):
            return msgspec.msgpack.decode(_unseal(sealed), type=SavedClock)
    return SavedClock(None, 0, 0)  # as if the wall clock had never been set


def _seal(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_SUM_BYTES, "little") + data


def _unseal(sealed: object) -> bytes:
    """Return the data of `_seal`. Raises `DecodeError` for damaged bytes."""
    if isinstance(sealed, bytes) and sealed == _seal(sealed[_SUM_BYTES:]):
        return sealed[_SUM_BYTES:]
    raise DecodeError("$", "the bytes that were written", "others")
