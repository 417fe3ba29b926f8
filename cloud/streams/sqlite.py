"""Feedback log in one SQLite file in write-ahead mode: the default, for the serving processes of one machine.

Table `event`: `place` increases in the order of acceptance, `event_id` is unique across all processes, and `body` is the event
as MessagePack. `writer` is a random number of the open log that wrote the event, by which `poll` recognises its own events.
Each batch is one transaction.

Any number of processes may have the file open. It must be on a local disk, because they share the memory of the write-ahead
file. The locks of SQLite are those of the kernel: they are released when a process is killed, and what it had not committed is
not in the log. Writers take turns, and a batch that waits longer than `busy_s` is rejected. Readers never wait.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from threading import Lock
from time import monotonic, sleep

from pocketrank.cloud.streams.feedback_log import Appended, FeedbackLog, LogBusyError, LoggedEvent, LogOpenError, LogWriteError
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError, FeedbackEvent

__all__ = ["SqliteFeedbackLog", "SqliteLogConfig"]

_APPLICATION_ID = 0x706B726B  # "pkrk", in the header of the file: tells a log from the database of another program
_FORMAT = 2
_WITHOUT_WRITER = 1
"""The former format, for one process. A log of it is upgraded when it is opened."""

_TABLE = """CREATE TABLE event (
    place INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL, writer INTEGER NOT NULL DEFAULT 0
)"""
_ROWS = 64
"""Largest number of rows in one statement. Ten rows took 20 µs in one statement and 29 in ten, each of which releases the
interpreter lock."""
_REPLAY = "SELECT place, body FROM event WHERE place > ? ORDER BY place LIMIT ?"
# The bodies of own events are not read, but their places are.
_OTHERS = "SELECT place, CASE writer WHEN ? THEN NULL ELSE body END FROM event WHERE place > ? ORDER BY place"


@dataclass(frozen=True)
class SqliteLogConfig:
    """Durability, size and waiting times."""

    full_sync: bool = True
    """Whether events survive a power cut, and not only the end of the process: one fsync a transaction."""
    bytes_max: int | None = None
    """Largest size of the file; None for no limit. At this size batches are rejected as on a full disk."""
    busy_s: float = 5.0
    """Longest wait for the writers of other processes, in seconds; then the batch is rejected."""
    retry_s: float = 0.001
    """Mean pause in seconds between two attempts to become the writer. Those of SQLite itself grow to 100 ms, and with them so
    did the time of the slowest batches."""
    replay_rows: int = 4096
    """Events that `replay` reads at a time; appends continue in between."""


class SqliteFeedbackLog(FeedbackLog):
    """Log in the file at `path`, which is made if missing. Raises `LogOpenError`."""

    def __init__(self, path: Path, config: SqliteLogConfig | None = None) -> None:
        self._path, self._config = path, config or SqliteLogConfig()
        self._writer, self._random = secrets.randbits(63), Random()
        self._write_lock, self._read_lock = Lock(), Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise LogOpenError(str(path), "a file for the feedback log", str(error)) from error
        try:
            self._retry_busy(db, lambda: self._prepare(db))
            # A second connection, so that reads do not wait while another thread syncs the disk.
            reader = self._connect()
            self._version = reader.execute("PRAGMA data_version").fetchone()[0]
            self._read_to = reader.execute("SELECT coalesce(max(place), 0) FROM event").fetchone()[0]
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error):
                got = "one that another process has locked" if _is_busy(error) else str(error)
                raise LogOpenError(str(path), "a feedback log that can be locked", got) from error
            raise
        db.execute("PRAGMA busy_timeout = 0")  # from here on `_retry_busy` waits
        self._db: sqlite3.Connection | None = db
        self._reader: sqlite3.Connection | None = reader

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=self._config.busy_s, isolation_level=None, check_same_thread=False)

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN")  # one consistent view: another process may be making the log
        self._is_fresh(db)  # raises before anything is changed in a file that is no log
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._config.full_sync else 'NORMAL'}")
        if self._config.bytes_max is not None:
            page = db.execute("PRAGMA page_size").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {max(1, self._config.bytes_max // page)}")
        db.execute("BEGIN IMMEDIATE")
        if self._is_fresh(db):  # again, under the lock: another process may have made the log meanwhile
            db.execute(_TABLE)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        elif _pragma(db, "user_version") == _WITHOUT_WRITER:
            db.execute("ALTER TABLE event ADD COLUMN writer INTEGER NOT NULL DEFAULT 0")
        if _pragma(db, "user_version") != _FORMAT:
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        db.execute("COMMIT")

    def _is_fresh(self, db: sqlite3.Connection) -> bool:
        application, format_ = _pragma(db, "application_id"), _pragma(db, "user_version")
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and application == 0:
            return True
        if application != _APPLICATION_ID or format_ not in (_FORMAT, _WITHOUT_WRITER):
            got = f"a database of kind {application}, format {format_}"
            raise LogOpenError(str(self._path), f"a feedback log of format {_FORMAT}", got)
        return False

    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Write the new ones of `events` in one transaction. Raises `LogWriteError`; then none of them is written."""
        rows = [(event.event_id, to_msgpack(event), self._writer) for event in events]
        with self._write_lock:
            db = self._open_for_writing()
            try:
                self._begin(db)
                new = self._insert(db, rows)
                if new < len(rows):  # only row by row is it known which are new
                    db.execute("ROLLBACK")
                    self._begin(db)
                    accepted = tuple(event for event, row in zip(events, rows, strict=True) if self._insert(db, [row]))
                else:
                    accepted = tuple(events)
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._write_error(db, error) from error
        return Appended(accepted, len(events) - len(accepted))

    def _insert(self, db: sqlite3.Connection, rows: Sequence[tuple[str, bytes, int]]) -> int:
        """Insert the rows whose event id is new. Returns their number."""
        new = 0
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            values = ", ".join(["(?, ?, ?)"] * len(part))
            insert = f"INSERT INTO event (event_id, body, writer) VALUES {values} ON CONFLICT (event_id) DO NOTHING"
            new += db.execute(insert, list(chain.from_iterable(part))).rowcount
        return new

    def check(self) -> None:
        """Write the header of the file again, unchanged. Raises `LogWriteError`."""
        with self._write_lock:
            db = self._open_for_writing()
            try:
                self._begin(db)
                db.execute(f"PRAGMA user_version = {_FORMAT}")
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._write_error(db, error) from error

    def _begin(self, db: sqlite3.Connection) -> None:
        self._retry_busy(db, lambda: db.execute("BEGIN IMMEDIATE"))

    def _retry_busy(self, db: sqlite3.Connection, work: Callable[[], object]) -> None:
        """Do `work`, and repeat it while the file is locked: SQLite itself does not wait to change the journal mode."""
        until = monotonic() + self._config.busy_s
        while True:
            try:
                work()
                return
            except sqlite3.OperationalError as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if not _is_busy(error) or monotonic() >= until:
                    raise
            # A random pause, so that two waiting processes do not always try at the same time.
            sleep(self._random.uniform(0, 2 * self._config.retry_s))

    def _open_for_writing(self) -> sqlite3.Connection:
        if self._db is None:
            raise LogWriteError(str(self._path), "an open log", "a closed one")
        return self._db

    def _write_error(self, db: sqlite3.Connection, error: sqlite3.Error) -> LogWriteError:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if _is_busy(error):
            return LogBusyError(str(self._path), f"a turn to write within {self._config.busy_s:g} s", str(error))
        return LogWriteError(str(self._path), "room for a batch of feedback", str(error))

    def replay(self) -> Iterator[FeedbackEvent]:
        """Yield every event in the order of acceptance. Raises `LogOpenError` at an event that cannot be read."""
        place = 0
        while rows := self._read(_REPLAY, (place, self._config.replay_rows), place):
            for place, body in rows:
                yield self._event(place, body)
        with self._read_lock:
            self._read_to = max(self._read_to, place)

    def poll(self) -> Sequence[FeedbackEvent]:
        """Return the events that other open logs of the file wrote since the last call. Raises `LogOpenError`."""
        with self._read_lock:
            db = self._open_for_reading()
            try:
                version = db.execute("PRAGMA data_version").fetchone()[0]
                if version == self._version:
                    return ()
                rows = db.execute(_OTHERS, (self._writer, self._read_to)).fetchall()
            except sqlite3.Error as error:
                raise LogOpenError(str(self._path), f"events after place {self._read_to}", str(error)) from error
            events: list[FeedbackEvent] = []
            for place, body in rows:
                if body is not None:
                    try:
                        events.append(self._event(place, body))
                    except LogOpenError:
                        if events:  # returned first; the next call raises the error
                            return events
                        self._read_to = place  # raised once; the next call returns the events after it
                        raise
                self._read_to = place
            # The version was read before the events: an event that was committed in between causes one needless read later. In
            # the other order it would be missed.
            self._version = version
            return events

    def _read(self, query: str, values: tuple[int, ...], after: int) -> list[tuple[int, bytes]]:
        with self._read_lock:
            try:
                return self._open_for_reading().execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise LogOpenError(str(self._path), f"events after place {after}", str(error)) from error

    def _open_for_reading(self) -> sqlite3.Connection:
        if self._reader is None:
            raise LogOpenError(str(self._path), "an open log", "a closed one")
        return self._reader

    def _event(self, place: int, body: bytes) -> FeedbackEvent:
        try:
            # Nearly all are as the device sent them.
            return from_msgpack(body, LoggedEvent if b"correction_ms" in body else FeedbackEvent)
        except ContractError as error:
            raise LogOpenError(str(self._path), f"a feedback event at place {place}", str(error)) from error

    def close(self) -> None:
        """Close the log; the last process to do so merges the write-ahead file into it."""
        with self._write_lock, self._read_lock:
            for db in (self._reader, self._db):
                if db is not None:
                    db.close()
            self._reader = self._db = None


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
