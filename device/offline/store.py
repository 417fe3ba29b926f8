"""What a device keeps between two starts of the app: unsent feedback, pages, what was watched, and small named things.

One file (`pocketrank.device.offline.database`, whose errors are this module's too). Every row carries a checksum; one that
does not fit is left out and counted. Everything is bounded, oldest let go first.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import NamedTuple

from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError, DecodeError, FeedbackEvent, Page
from pocketrank.device.offline.database import (
    Database,
    DatabaseError,
    DatabaseHeldError,
    DatabaseOpenError,
    ForeignDatabaseError,
)
from pocketrank.device.offline.outbox import Held, MemoryOutbox, OutboxConfig

__all__ = [
    "DatabaseError",
    "DatabaseHeldError",
    "DatabaseOpenError",
    "DeviceStore",
    "ForeignDatabaseError",
    "KeptPage",
    "DeviceStoreConfig",
    "StoredOutbox",
]

# Strict, so that a check of the whole file also finds values of another type.
_SCHEMA = (
    "CREATE TABLE event (place INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE TABLE gone (slot INTEGER PRIMARY KEY, place INTEGER NOT NULL, event_id TEXT NOT NULL, item_id INTEGER NOT NULL)"
    " STRICT",
    "CREATE TABLE page (place INTEGER PRIMARY KEY, page_id TEXT UNIQUE, ms INTEGER NOT NULL, body BLOB NOT NULL) STRICT",
    "CREATE TABLE state (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT",
)
_ADD = "REPLACE INTO event VALUES (?, ?)"
_SUM_BYTES = 4  # of the checksum before each row's data
_SAVE_CHUNK = 64  # rows saved late under one lock, so that a swipe meanwhile waits for few


@dataclass(frozen=True)
class DeviceStoreConfig:
    """How much is kept. With the defaults the file stays below 10 MB, its write-ahead file as well."""

    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    """How much feedback waits."""
    pages_max: int = 4
    """Pages kept: the one that is held, and some whose rest may be shown when there is nothing else."""
    pages_bytes_max: int = 1 << 20
    """Bytes of those pages; one of 60 candidates has ten thousand. A page larger than that by itself is not kept."""
    shown_max: int = 256
    """Items that an earlier session is known to have shown; as many as a session remembers (`SessionConfig.shown_max`)."""
    state_bytes_max: int = 1 << 20
    """Bytes of one named thing; a user's personal layer has a few thousand."""
    wal_bytes: int = 1 << 20
    """The write-ahead file is folded in beyond this, once in some 200 swipes; a swipe that comes just then waits for 1 ms."""


class KeptPage(NamedTuple):
    """A page from the file."""

    page: Page
    taken_ms: int
    """when it came, by the device's clock"""


class StoredOutbox(MemoryOutbox):
    """An outbox whose events are in the file too: `add` returns when the event would survive a kill -9.

    What the file does not take (a full disk) waits in memory all the same, is counted as `unsaved` and tried again by `tidy`.
    """

    def __init__(self, database: Database, config: OutboxConfig) -> None:
        super().__init__(config)
        self._database = database
        self._unsaved: dict[int, Held] = {}
        # Places of events that have left, and their rows among the `gone`, which the file has not taken yet.
        self._left: deque[tuple[int, tuple[int, int, str, int]]] = deque(maxlen=config.ids_max)
        self.damaged = 0
        """events in the file that could not be read"""
        ids = database.read("SELECT place, event_id, item_id FROM gone ORDER BY place")
        self._gone.update((name, item) for _, name, item in ids[-config.ids_max :])
        self._gone_place = ids[-1][0] + 1 if ids else 0
        damaged: list[int] = []
        for place, sealed in database.read("SELECT place, body FROM event ORDER BY place"):
            self._place = place + 1
            try:
                body = _unseal(sealed)
                event = from_msgpack(body, FeedbackEvent)
                self._wait(Held(place, event.event_id, event.item_id, body))
            except ContractError:
                damaged.append(place)
        self.damaged = len(damaged)
        if damaged:
            database.write_all([("DELETE FROM event WHERE place = ?", [(place,) for place in damaged])])
        self._trim()

    @property
    def unsaved(self) -> int:
        """Events that would not survive a kill, because the file did not take them."""
        return len(self._unsaved)

    def items(self) -> list[int]:
        """Those of all events that are here or remembered to have been, each once, the latest last."""
        with self._lock:
            here = sorted((*self._in_flight.values(), *self._waiting.values()))
            items = (*self._gone.values(), *(held.item_id for held in here))
        return list(dict.fromkeys(reversed(items)))[::-1]

    def tidy(self) -> None:
        """Fold in, make good a damaged file, and save what could not be saved before. For a thread that no swipe waits for."""
        begun_anew = self._database.tidy()
        with self._lock:
            if begun_anew:
                self._unsaved = {held.place: held for held in (*self._in_flight.values(), *self._waiting.values())}
                self._left.clear()
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

    def _save(self, held: Held) -> None:
        if not self._database.write(_ADD, (held.place, _seal(held.body))):
            self._unsaved[held.place] = held

    def _forget(self, gone: Sequence[Held]) -> None:
        for held in gone:
            self._unsaved.pop(held.place, None)
            self._leaving(held.event_id, held.item_id, held.place)
        # Where this fails they are sent again after a kill, and the cloud knows their ids.
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
    """The file at `path`, made when missing. Safe to call from several threads. Raises `DatabaseError`.

    No method raises for what the disk does: `save_page` and `set_state` answer whether it was kept.
    """

    def __init__(self, path: Path, config: DeviceStoreConfig | None = None) -> None:
        self._config = config or DeviceStoreConfig()
        self._database = Database(path, _SCHEMA, self._config.wal_bytes)
        self._outbox = StoredOutbox(self._database, self._config.outbox)
        self._lock = Lock()
        self.pages_dropped = 0
        """pages that were let go for newer ones, or not kept for their size"""
        self._damaged_rows = 0
        self._pages = deque(self._database.read("SELECT place, length(body) FROM page ORDER BY place"))
        self._page_place = self._pages[-1][0] + 1 if self._pages else 0

    def __enter__(self) -> DeviceStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Save what could not be saved before, and let go of the file. What comes later is kept in memory only."""
        self._outbox.tidy()
        self._database.close()

    @property
    def outbox(self) -> StoredOutbox:
        """The feedback that waits."""
        return self._outbox

    @property
    def damaged_files(self) -> int:
        """Files that were moved aside because they were damaged; the last one lies beside ours as `.damaged`."""
        return self._database.damaged

    @property
    def damaged_rows(self) -> int:
        """Events, pages and named things in the file that could not be read."""
        return self._damaged_rows + self._outbox.damaged

    @property
    def writes_failed(self) -> int:
        """Writes that the disk did not take."""
        return self._database.failed

    def save_page(self, page: Page, now_ms: int) -> bool:
        """Keep a page that came at `now_ms` of the device's clock. False when it was not kept; one that was kept before stays
        as it was, with its age."""
        body = _seal(to_msgpack(page))
        with self._lock:
            if len(body) > self._config.pages_bytes_max:
                self.pages_dropped += 1
                return False
            pages = deque([*self._pages, (self._page_place, len(body))])
            old: list[int] = []
            while len(pages) > self._config.pages_max or sum(size for _, size in pages) > self._config.pages_bytes_max:
                old.append(pages.popleft()[0])
            if self._database.read("SELECT 1 FROM page WHERE page_id = ?", (page.page_id,)):
                return True
            kept = self._database.write_all([
                ("INSERT INTO page VALUES (?, ?, ?, ?)", [(self._page_place, page.page_id, now_ms, body)]),
                ("DELETE FROM page WHERE place = ?", [(place,) for place in old]),
            ])  # fmt: skip
            if kept:
                self._pages = pages
                self._page_place += 1
                self.pages_dropped += len(old)
            return kept

    def pages(self, now_ms: int, *, stale: bool = False) -> Iterator[KeptPage]:
        """Pages that live by the device's clock, newest first; with `stale` also those that no longer do."""
        for (place,) in self._database.read("SELECT place FROM page ORDER BY place DESC"):
            for taken_ms, sealed in self._database.read("SELECT ms, body FROM page WHERE place = ?", (place,)):
                try:
                    page = from_msgpack(_unseal(sealed), Page)
                except ContractError:
                    self._damaged_rows += 1
                    continue
                if stale or now_ms - taken_ms < page.ttl_ms:
                    yield KeptPage(page, taken_ms)

    def shown_items(self) -> list[int]:
        """The items of the last `shown_max` impressions whose feedback came, oldest first; sent or not."""
        return self._outbox.items()[-self._config.shown_max :]

    def state(self, name: str) -> bytes | None:
        """What was kept under `name`; None: nothing, or it was damaged."""
        for (sealed,) in self._database.read("SELECT body FROM state WHERE name = ?", (name,)):
            try:
                return _unseal(sealed)
            except ContractError:
                self._damaged_rows += 1
        return None

    def set_state(self, name: str, data: bytes) -> bool:
        """Keep `data` under `name` instead of what was there, which stays when this answers False: too long, or no room."""
        if len(data) > self._config.state_bytes_max:
            return False
        return self._database.write("REPLACE INTO state VALUES (?, ?)", (name, _seal(data)))


def _seal(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_SUM_BYTES, "little") + data


def _unseal(sealed: object) -> bytes:
    """Raises `DecodeError` for bytes that are not as they were written."""
    if isinstance(sealed, bytes) and sealed == _seal(sealed[_SUM_BYTES:]):
        return sealed[_SUM_BYTES:]
    raise DecodeError("$", "bytes as they were written", "others")
