"""Feedback log in one SQLite file in write-ahead mode: the default, for the serving processes of one machine.

Table `event`: `place` increases in the order of acceptance and is never used twice, `user_id` and `event_id` are unique
together across all processes, `added_ms` is when the event was accepted by the log's own clock, and `body` is the event as
MessagePack. `writer` is a random number of the open log that wrote the event, by which `poll` recognises its own events. A
record with the empty event id and an empty body says that a user was forgotten. Each batch is one transaction.

Table `clock` holds the time of the log's own clock, by which events grow old. It begins as that of this machine, and goes on by
the monotonic one while the log is open and by at most a day for each pause. So a clock that is wrong by years, once, costs a
day.

Any number of processes may have the file open. It must be on a local disk, because they share the memory of the write-ahead
file. The locks of SQLite are those of the kernel: they are released when a process is killed, and what it had not committed is
not in the log. Writers take turns, and a batch that waits longer than `busy_s` is rejected. Readers never wait.

The file and its neighbours (`-wal`, `-shm`) are created for their owner alone. While they are not the files that were opened,
because somebody moved, replaced or removed one, batches are rejected: what was written would be lost.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread
from time import monotonic, sleep, time

from pocketrank.cloud.streams.feedback_log import (
    Appended,
    FeedbackLog,
    Forgotten,
    LogBusyError,
    LogOpenError,
    LogWriteError,
    read_record,
)
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import ContractError, FeedbackEvent

__all__ = ["SqliteFeedbackLog", "SqliteLogConfig"]

_APPLICATION_ID = 0x706B726B  # "pkrk", in the header of the file: tells a log from the database of another program
_FORMAT = 3
_FORMER = (1, 2)
"""Formats without users: event ids were unique for all. A log of them is upgraded when it is opened."""

_TABLE = """CREATE TABLE event (
    place INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER, event_id TEXT NOT NULL, added_ms INTEGER NOT NULL,
    body BLOB NOT NULL, writer INTEGER NOT NULL, UNIQUE (user_id, event_id)
)"""
_CLOCK = "CREATE TABLE clock (now_ms INTEGER NOT NULL)"
_INDEX = "CREATE INDEX event_added ON event (added_ms)"
_UPGRADE = "INSERT INTO event SELECT place, user_of(body), event_id, now_ms, body, 0 FROM former, clock ORDER BY place"
_ROWS = 64
"""Largest number of rows in one statement. Ten rows took 20 µs in one statement and 29 in ten, each of which releases the
interpreter lock."""
_INSERT = "INSERT INTO event (user_id, event_id, added_ms, body, writer) VALUES"
# The bodies of own events are not read, but their places are.
_RECORDS = "SELECT place, user_id, CASE writer WHEN ? THEN NULL ELSE body END FROM event WHERE place > ? ORDER BY place LIMIT ?"
_RECORD_AT = "SELECT place, user_id, CASE writer WHEN ? THEN NULL ELSE body END FROM event WHERE place = ?"
_LAST = "SELECT coalesce(max(place), 0) FROM event"
_EXPIRE = "DELETE FROM event WHERE place IN (SELECT place FROM event WHERE added_ms < ? ORDER BY added_ms LIMIT ?)"
_NOBODY, _ANYBODY = -1, 0
"""Writers whose own events are those of no open log, and of none in particular."""
_FORGOTTEN = b""
"""Body of the record that says that a user was forgotten."""
_CHECK_BYTES = 512
"""Size of the event that `check` writes: a little more than a usual one."""
_NAMED_MAX = 10
"""Number of unreadable records that are named in the log of a process; the others are only counted."""
_TICK_MS = 3_600_000
"""Time by which the clock in the file may be behind."""
_EXPIRE_PAUSE_S = 0.1
"""Pause in seconds between two deletions in a row, in which events are written."""
_DAY_MS = 86_400_000
_FILES = ("", "-wal", "-shm")
_OWNER_ONLY = 0o600
_PARTLY_READABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR)
"""Errors that a damaged page or sector causes, around which the rest can be read."""

_Row = tuple[int, int | None, object]
"""Place, user and body of a record; an own event has the body None, and one that cannot be read has the error."""

_logger = logging.getLogger(__name__)


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
    keep_days: float | None = 90.0
    """How long events are kept after they were accepted, by the log's own clock; None keeps them for ever. An event that is
    sent again after that time counts as a new one."""
    expire_every_s: float = 60.0
    """Pause in seconds between two searches for events that were kept for long enough."""
    expire_rows: int = 500
    """Largest number of events that one transaction deletes, so that no batch waits for long."""

    def __post_init__(self) -> None:
        if self.keep_days is not None and not self.keep_days > 0:
            raise ValueError(f"Expected keep_days above 0, got {self.keep_days}")


class SqliteFeedbackLog(FeedbackLog):
    """Log in the file at `path`, which is made if missing. Raises `LogOpenError`."""

    def __init__(self, path: Path, config: SqliteLogConfig | None = None) -> None:
        self._path, self._config = path, config or SqliteLogConfig()
        self._writer, self._random = secrets.randbits(63) | 1, Random()  # never `_ANYBODY`
        self._write_lock, self._read_lock = Lock(), Lock()
        self._unreadable = self._counted_to = 0
        self._forgotten: list[int] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            real = os.path.realpath(path)  # beside which its neighbours stand
            with suppress(FileExistsError):  # closing a file that is open elsewhere in this process would drop its locks
                os.close(os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL, _OWNER_ONLY))  # its neighbours get the same mode
            db = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise LogOpenError(str(path), "a file for the feedback log", str(error)) from error
        self._files = [os.path.abspath(path), *(real + name for name in _FILES[1:])]
        try:
            self._retry_busy(db, lambda: self._prepare(db))
            # A second connection, so that reads do not wait while another thread syncs the disk.
            reader = self._connect()
            self._version = reader.execute("PRAGMA data_version").fetchone()[0]
            self._read_to = reader.execute(_LAST).fetchone()[0]
            now = int(time() * 1000)
            then = reader.execute("SELECT coalesce(max(now_ms), ?) FROM clock", (now,)).fetchone()[0]
            paused = min(max(now - then, 0), _DAY_MS)
            self._clock_ahead: int = then + paused - _monotonic_ms()
            self._opened = self._identify()
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error | OSError):
                got = "one that another process has locked" if _is_busy(error) else str(error)
                raise LogOpenError(str(path), "a feedback log that can be locked", got) from error
            raise
        db.execute("PRAGMA busy_timeout = 0")  # from here on `_retry_busy` waits
        self._db: sqlite3.Connection | None = db
        self._reader: sqlite3.Connection | None = reader
        self._closed = Event()
        self._expiring = Thread(target=self._expire_regularly, name="pocketrank-retention", daemon=True)
        if self._config.keep_days is not None:
            self._expiring.start()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=self._config.busy_s, isolation_level=None, check_same_thread=False)

    def _identify(self) -> list[tuple[int, int]]:
        return [(found.st_dev, found.st_ino) for found in map(os.stat, self._files)]

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN")  # one consistent view: another process may be making the log
        self._is_fresh(db)  # raises before anything is changed in a file that is no log
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._config.full_sync else 'NORMAL'}")
        db.execute("PRAGMA secure_delete = ON")  # deleted events are overwritten
        db.execute("BEGIN IMMEDIATE")
        if self._is_fresh(db):  # again, under the lock: another process may have made the log meanwhile
            self._make(db)
            db.execute(_INDEX)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        elif _pragma(db, "user_version") in _FORMER:
            self._upgrade(db)
        if _pragma(db, "user_version") != _FORMAT:
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        db.execute("COMMIT")
        if self._config.bytes_max is not None:  # not before an upgrade, which needs room for a while
            page = db.execute("PRAGMA page_size").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {max(1, self._config.bytes_max // page)}")

    def _make(self, db: sqlite3.Connection) -> None:
        db.execute(_TABLE)
        db.execute(_CLOCK)
        db.execute("INSERT INTO clock VALUES (?)", (int(time() * 1000),))

    def _upgrade(self, db: sqlite3.Connection) -> None:
        """Write the table anew, which is the only way to change what is unique. When its events were accepted is not known:
        they are kept as if it were now."""
        db.create_function("user_of", 1, _user_of, deterministic=True)
        db.execute("ALTER TABLE event RENAME TO former")
        self._make(db)
        db.execute(_UPGRADE)
        db.execute(_INDEX)
        db.execute("DROP TABLE former")
        for file in self._files:
            with suppress(OSError):  # former versions created them for everybody; they may be another user's
                os.chmod(file, _OWNER_ONLY)

    def _is_fresh(self, db: sqlite3.Connection) -> bool:
        application, format_ = _pragma(db, "application_id"), _pragma(db, "user_version")
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and application == 0:
            return True
        if application != _APPLICATION_ID or format_ not in (_FORMAT, *_FORMER):
            got = f"a database of kind {application}, format {format_}"
            raise LogOpenError(str(self._path), f"a feedback log of format {_FORMAT}", got)
        return False

    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Write the new ones of `events` in one transaction. Raises `LogWriteError`; then none of them is written."""
        now = self._now_ms()
        rows = [(event.user_id, event.event_id, now, to_msgpack(event), self._writer) for event in events]
        with self._writing() as db:
            new = self._insert(db, rows)
            if new < len(rows):  # only row by row is it known which are new
                db.execute("ROLLBACK")
                self._begin(db)
                accepted = tuple(event for event, row in zip(events, rows, strict=True) if self._insert(db, [row]))
            else:
                accepted = tuple(events)
        return Appended(accepted, len(events) - len(accepted))

    def _insert(self, db: sqlite3.Connection, rows: Sequence[tuple[int, str, int, bytes, int]]) -> int:
        """Insert the rows whose event id is new to their user. Returns their number."""
        new = 0
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            insert = f"{_INSERT} {', '.join(['(?, ?, ?, ?, ?)'] * len(part))} ON CONFLICT (user_id, event_id) DO NOTHING"
            new += db.execute(insert, list(chain.from_iterable(part))).rowcount
        return new

    def forget(self, user_id: int) -> Forgotten:
        """Delete the user's events, and overwrite them in the file and in the write-ahead file. Raises `LogWriteError`.

        A reader that is busy for longer than `busy_s` keeps the write-ahead file from being overwritten before its next use.
        """
        with self._writing() as db:
            db.execute("DELETE FROM event WHERE user_id = ? AND event_id = ''", (user_id,))  # that of a former call
            count = db.execute("DELETE FROM event WHERE user_id = ?", (user_id,)).rowcount
            db.execute(f"{_INSERT} (?, '', ?, ?, ?)", (user_id, self._now_ms(), _FORGOTTEN, _ANYBODY))
            unassigned = db.execute("SELECT count(*) FROM event WHERE user_id IS NULL").fetchone()[0]
        until = monotonic() + self._config.busy_s
        with self._write_lock, suppress(sqlite3.Error):
            while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] and monotonic() < until:
                sleep(self._config.retry_s)
        return Forgotten(count, unassigned)

    def expire(self) -> int:
        """Delete events that were kept for `keep_days`, at most `expire_rows`; return their number. Raises `LogWriteError`."""
        if self._config.keep_days is None:
            return 0
        with self._writing() as db:
            now = self._now_ms()
            db.execute("UPDATE clock SET now_ms = ? WHERE now_ms < ?", (now, now - _TICK_MS))
            before = now - round(self._config.keep_days * _DAY_MS)
            return int(db.execute(_EXPIRE, (before, self._config.expire_rows)).rowcount)

    def _now_ms(self) -> int:
        return self._clock_ahead + _monotonic_ms()

    def _expire_regularly(self) -> None:
        pause_s = self._config.expire_every_s
        while not self._closed.wait(pause_s):
            pause_s, deleted = self._config.expire_every_s, 0
            try:
                deleted = self.expire()
            except LogBusyError:
                pass
            except LogWriteError as error:
                if not self._closed.is_set():
                    _logger.warning("old events of the feedback log could not be deleted: %s", error)
            if deleted == self._config.expire_rows:
                pause_s = _EXPIRE_PAUSE_S

    def check(self) -> None:
        """Write an event and undo that, write the header of the file as it was, and read. Raises `FeedbackLogError`."""
        with self._writing() as db:
            db.execute("SAVEPOINT checked")
            db.execute(f"{_INSERT} (NULL, '', 0, zeroblob(?), ?)", (_CHECK_BYTES, self._writer))
            db.execute("ROLLBACK TO checked")
            db.execute(f"PRAGMA user_version = {_FORMAT}")  # something to commit, which reaches the disk
        with self._read_lock:
            self._rows(self._writer, self._read_to - 1, 1)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, which is committed at the end of the block and undone after an error. Raises `LogWriteError`."""
        with self._write_lock:
            if (db := self._db) is None:
                raise LogWriteError(str(self._path), "an open log", "a closed one")
            try:
                self._begin(db)
                self._check_files()
                yield db
                db.execute("COMMIT")
            except sqlite3.Error as error:
                if _is_busy(error):
                    expected = f"a turn to write within {self._config.busy_s:g} s"
                    raise LogBusyError(str(self._path), expected, str(error)) from error
                raise LogWriteError(str(self._path), "room for a batch of feedback", str(error)) from error
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _check_files(self) -> None:
        """Raise `LogWriteError` if a file is not the one that was opened. Takes microseconds."""
        try:
            found = self._identify()
        except OSError as error:
            got = f"`{os.path.basename(error.filename)}`: {error.strerror}"  # not its folder, which a client might read
        else:
            if found == self._opened:
                return
            got = "another file under its name"
        raise LogWriteError(str(self._path), "the log that was opened, with its -wal and -shm (restart the server)", got)

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

    def replay(self) -> Iterator[FeedbackEvent]:
        """Yield every event in the order of acceptance. Raises `LogOpenError`."""
        place = 0
        while True:
            with self._read_lock:
                rows, read_to = self._rows(_NOBODY, place, self._config.replay_rows)
                events = self._events(rows)
            if read_to == place:
                break
            place = read_to
            yield from events
        with self._read_lock:
            self._read_to = max(self._read_to, place)

    def poll(self) -> Sequence[FeedbackEvent]:
        """Return the events that other open logs of the file wrote since the last call. Raises `LogOpenError`."""
        with self._read_lock:
            try:
                version = self._open_for_reading().execute("PRAGMA data_version").fetchone()[0]
            except sqlite3.Error as error:
                raise LogOpenError(str(self._path), f"events after place {self._read_to}", str(error)) from error
            if version == self._version:
                return ()
            rows, self._read_to = self._rows(self._writer, self._read_to, None)
            # The version was read before the events: an event that was committed in between causes one needless read later. In
            # the other order it would be missed.
            self._version = version
            return self._events(rows)

    def forgotten(self) -> Sequence[int]:
        """Return the users that `forget` deleted, as far as `replay` and `poll` have read."""
        if not self._forgotten:
            return ()
        with self._read_lock:
            users, self._forgotten = self._forgotten, []
            return users

    @property
    def unreadable(self) -> int:
        """Number of records that were skipped because they cannot be read."""
        return self._unreadable

    def _rows(self, writer: int, after: int, count: int | None) -> tuple[list[_Row], int]:
        """Return up to `count` records after a place, without the bodies of `writer`, and the place up to which they reach.

        Around damaged pages of the file the records are read one by one. Raises `LogOpenError`.
        """
        db = self._open_for_reading()
        try:
            try:
                rows = db.execute(_RECORDS, (writer, after, -1 if count is None else count)).fetchall()
                return rows, rows[-1][0] if rows else after
            except sqlite3.DatabaseError as error:
                if _code(error) not in _PARTLY_READABLE:
                    raise
                last = db.execute(_LAST).fetchone()[0]
        except sqlite3.Error as error:
            raise LogOpenError(str(self._path), f"events after place {after}", str(error)) from error
        read_to = max(after, last if count is None else min(last, after + count))
        found = list[_Row]()
        for place in range(after + 1, read_to + 1):
            try:
                found += db.execute(_RECORD_AT, (writer, place)).fetchall()
            except sqlite3.DatabaseError as error:
                found.append((place, None, error))
        return found, read_to

    def _events(self, rows: Sequence[_Row]) -> list[FeedbackEvent]:
        """Return the events in the bodies of records, and keep the forgotten users for `forgotten`."""
        events = list[FeedbackEvent]()
        for place, user_id, body in rows:
            if body is None:
                continue
            if body == _FORGOTTEN and isinstance(user_id, int):
                self._forgotten.append(user_id)
                continue
            try:
                events.append(_event(body))
            except ContractError as error:
                self._skip(place, error)
        return events

    def _skip(self, place: int, error: ContractError) -> None:
        if place <= self._counted_to:  # a second replay
            return
        self._counted_to, self._unreadable = place, self._unreadable + 1
        if self._unreadable <= _NAMED_MAX:
            more = "; further ones are only counted" if self._unreadable == _NAMED_MAX else ""
            _logger.error("record %d of the feedback log %s is skipped: %s%s", place, self._path, error, more)

    def _open_for_reading(self) -> sqlite3.Connection:
        if self._reader is None:
            raise LogOpenError(str(self._path), "an open log", "a closed one")
        return self._reader

    def close(self) -> None:
        """Close the log; the last process to do so merges the write-ahead file into it."""
        self._closed.set()
        if self._expiring.is_alive():
            self._expiring.join()
        with self._write_lock, self._read_lock:
            for db in (self._reader, self._db):
                if db is not None:
                    db.close()
            self._reader = self._db = None


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _event(body: object) -> FeedbackEvent:
    if not isinstance(body, bytes):
        raise ContractError("$", "a feedback event as bytes", str(body) if isinstance(body, Exception) else type(body).__name__)
    return read_record(body)


def _user_of(body: object) -> int | None:
    """Return whose event a record is; None for one that cannot be read."""
    try:
        return _event(body).user_id
    except ContractError:
        return None


def _monotonic_ms() -> int:
    return int(monotonic() * 1000)


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_busy(error: BaseException) -> bool:
    return _code(error) == sqlite3.SQLITE_BUSY
