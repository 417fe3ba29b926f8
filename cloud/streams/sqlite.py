"""The feedback log in one SQLite file in write-ahead mode: the embedded default, for one serving process.

Table `event`: `place` counts up in the order of acceptance, `event_id` is unique, `body` is the event as MessagePack. One
transaction for a batch. The file is locked for as long as the log is open, because a second process would not hear of the
first one's events; a process killed with -9 lets go of the lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from cloud.streams.feedback_log import Appended, FeedbackLog, LogOpenError, LogWriteError
from device.codec import from_msgpack, to_msgpack
from device.contract import ContractError, FeedbackEvent

__all__ = ["SqliteFeedbackLog", "SqliteLogConfig"]

_APPLICATION_ID = 0x706B726B  # "pkrk", in the file's header: another program's database is not taken for a log
_FORMAT = 1


@dataclass(frozen=True)
class SqliteLogConfig:
    """How the file is written."""

    full_sync: bool = True
    """Survive a power cut, not only a killed process: one fsync a batch."""
    bytes_max: int | None = None
    """The file does not grow past this; None leaves it to the disk. Past it a batch is refused like on a full disk."""
    replay_rows: int = 4096
    """Events read at a time by `replay`; appends go on in between."""


class SqliteFeedbackLog(FeedbackLog):
    """The log in the file at `path`, made when missing. Raises `LogOpenError`."""

    def __init__(self, path: Path, config: SqliteLogConfig | None = None) -> None:
        self._path, self._config, self._lock = path, config or SqliteLogConfig(), Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise LogOpenError(str(path), "a file for the feedback log", str(error)) from error
        self._db: sqlite3.Connection | None = db
        try:
            self._prepare(db)
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error):
                locked = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                got = "one that another process holds" if locked else str(error)
                raise LogOpenError(str(path), "a feedback log of our own", got) from error
            raise

    def _prepare(self, db: sqlite3.Connection) -> None:
        # Exclusive before the first access: no shared memory file, and the lock comes with the first transaction.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        application = db.execute("PRAGMA application_id").fetchone()[0]
        format_ = db.execute("PRAGMA user_version").fetchone()[0]
        fresh = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and application == 0
        if not fresh and (application, format_) != (_APPLICATION_ID, _FORMAT):
            raise LogOpenError(
                str(self._path), f"a feedback log of format {_FORMAT}", f"a database of kind {application}, format {format_}"
            )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._config.full_sync else 'NORMAL'}")
        if self._config.bytes_max is not None:
            page = db.execute("PRAGMA page_size").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {max(1, self._config.bytes_max // page)}")
        db.execute("BEGIN IMMEDIATE")  # takes the lock even of a log that is whole already
        if fresh:
            db.execute("CREATE TABLE event (place INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL)")
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        db.execute("COMMIT")

    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Keep the new ones of `events` in one transaction. Raises `LogWriteError`; then none of them is kept."""
        rows = [(event.event_id, to_msgpack(event)) for event in events]
        insert = "INSERT INTO event (event_id, body) VALUES (?, ?) ON CONFLICT (event_id) DO NOTHING"
        with self._lock:
            if self._db is None:
                raise LogWriteError(str(self._path), "an open log", "a closed one")
            db = self._db
            try:
                db.execute("BEGIN IMMEDIATE")
                new = [db.execute(insert, row).rowcount == 1 for row in rows]
                db.execute("COMMIT")
            except sqlite3.Error as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise LogWriteError(str(self._path), "room for a batch of feedback", str(error)) from error
        accepted = tuple(event for event, is_new in zip(events, new, strict=True) if is_new)
        return Appended(accepted, len(events) - len(accepted))

    def replay(self) -> Iterator[FeedbackEvent]:
        """Every event in the order of acceptance. Raises `LogOpenError` at one that cannot be read."""
        place = 0
        query = "SELECT place, body FROM event WHERE place > ? ORDER BY place LIMIT ?"
        while True:
            with self._lock:
                if self._db is None:
                    raise LogOpenError(str(self._path), "an open log", "a closed one")
                try:
                    rows = self._db.execute(query, (place, self._config.replay_rows)).fetchall()
                except sqlite3.Error as error:
                    raise LogOpenError(str(self._path), f"events after place {place}", str(error)) from error
            if not rows:
                return
            for place, body in rows:
                try:
                    yield from_msgpack(body, FeedbackEvent)
                except ContractError as error:
                    raise LogOpenError(str(self._path), f"a feedback event at place {place}", str(error)) from error

    def close(self) -> None:
        """Fold the write-ahead file into the log and let go of it."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
