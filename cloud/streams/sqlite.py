"""Feedback log in one SQLite file in write-ahead mode: the default, for the serving processes of one machine.

`pocketrank.cloud.streams.sqlite_format` describes the tables. Each batch is one transaction.

The log's own clock, by which events grow old, begins as that of this machine, and goes on by the monotonic one while the log is
open and by at most a day for each pause. So a clock that is wrong by years, once, costs a day.

Any number of processes may have the file open. It must be on a local disk, because they share the memory of the write-ahead
file. The locks of SQLite are those of the kernel: they are released when a process is killed, and what it had not committed is
not in the log. Writers take turns, and a batch that waits longer than `busy_s` is rejected. Readers never wait.

The file and its neighbours (`-wal`, `-shm`) are created for their owner alone. While they are not the files that were opened,
because somebody moved, replaced or removed one, batches are rejected: what was written would be lost.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic, time
from typing import Any

from pocketrank.cloud.streams.feedback_log import (
    Appended,
    FeedbackLog,
    Forgotten,
    LogBusyError,
    LogMark,
    LogOpenError,
    LogWriteError,
    Records,
    is_corrected,
    read_record,
    read_records,
)
from pocketrank.cloud.streams.sqlite_file import OpenedFile, code_of, is_busy, overwrite_deleted, retry_busy
from pocketrank.cloud.streams.sqlite_format import ANYBODY, FORGOTTEN, FORMAT, is_fresh, pragma, prepare
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import ContractError, FeedbackEvent

__all__ = ["SqliteFeedbackLog", "SqliteLogConfig"]

_ROWS = 64
"""Largest number of rows in one statement. Ten rows took 20 µs in one statement and 29 in ten, each of which releases the
interpreter lock."""
_INSERT = "INSERT INTO event (user_id, event_id, added_ms, body, writer) VALUES"
_RECORDS = "SELECT place, user_id, body, added_ms FROM event WHERE place > ? ORDER BY place LIMIT ?"
_RECORD_AT = "SELECT place, user_id, body, added_ms FROM event WHERE place = ?"
_ENDS = """SELECT coalesce((SELECT min(place) FROM event), 0),
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event'), 0)"""
_OTHERS = "SELECT max(place) FROM event WHERE place > ? AND writer != ?"
_MARK = "SELECT log_id, added_ms, writer FROM identity LEFT JOIN event ON place = ?"
_EXPIRE = "DELETE FROM event WHERE place IN (SELECT place FROM event WHERE added_ms < ? ORDER BY added_ms LIMIT ?)"
_CHECK_BYTES = 512
"""Size of the event that `check` writes: a little more than a usual one."""
_NAMED_MAX = 10
"""Number of unreadable records that are named in the log of a process; the others are only counted."""
_TICK_MS = 3_600_000
"""Time by which the clock in the file may be behind."""
_EXPIRE_PAUSE_S = 0.1
"""Pause in seconds between two deletions in a row, in which events are written."""
_DAY_MS = 86_400_000
_DERIVED = "-states"
_IDS = "-ids"
_EVENTS = "-events"
_PARTLY_READABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR)
"""Errors that a damaged page or sector causes, around which the rest can be read."""

_Row = tuple[int, int | None, object, int]
"""Place, user, body and time of a record; one that cannot be read has the error as its body."""

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

    derived: Path
    ids: Path
    events: Path

    def __init__(self, path: Path, config: SqliteLogConfig | None = None) -> None:
        self._path, self._config = path, config or SqliteLogConfig()
        self._writer = secrets.randbits(63) | 1  # never `ANYBODY`
        self._write_lock, self._read_lock = Lock(), Lock()
        self._unreadable = self._counted_to = 0
        self._others_to = 0
        """Place up to which `news` knows what other open logs wrote."""
        self.read_max = self._config.replay_rows
        try:
            self._file = OpenedFile(path)
            db = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise LogOpenError(str(path), "a file for the feedback log", str(error)) from error
        self.derived, self.ids, self.events = (Path(self._file.real + name) for name in (_DERIVED, _IDS, _EVENTS))
        try:
            self._retry_busy(db, lambda: self._prepare(db))
            # A second connection, so that reads do not wait while another thread syncs the disk.
            reader = self._connect()
            self._version = -1  # of no file
            now = int(time() * 1000)
            then = reader.execute("SELECT coalesce(max(now_ms), ?) FROM clock", (now,)).fetchone()[0]
            paused = min(max(now - then, 0), _DAY_MS)
            self._clock_ahead: int = then + paused - _monotonic_ms()
            self._file.opened()
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error | OSError):
                got = "one that another process has locked" if is_busy(error) else str(error)
                raise LogOpenError(str(path), "a feedback log that can be locked", got) from error
            raise
        db.execute("PRAGMA busy_timeout = 0")  # from here on `_retry_busy` waits
        self._writing = _Writing(self)
        self._db: sqlite3.Connection | None = db
        self._reader: sqlite3.Connection | None = reader
        self._closed = Event()
        self._expiring = Thread(target=self._expire_regularly, name="pocketrank-retention", daemon=True)
        if self._config.keep_days is not None:
            self._expiring.start()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=self._config.busy_s, isolation_level=None, check_same_thread=False)

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN")  # one consistent view: another process may be making the log
        is_fresh(db, self._path)  # raises before anything is changed in a file that is no log
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._config.full_sync else 'NORMAL'}")
        db.execute("PRAGMA secure_delete = ON")  # deleted events are overwritten
        prepare(db, self._path, self._file.files)
        if self._config.bytes_max is not None:  # not before an upgrade, which needs room for a while
            page = db.execute("PRAGMA page_size").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {max(1, self._config.bytes_max // page)}")

    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Write the new ones of `events` in one transaction. Raises `LogWriteError`; then none of them is written."""
        now = self._now_ms()
        rows = [(event.user_id, event.event_id, now, to_msgpack(event), self._writer) for event in events]
        with self._writing as db:
            new, last = self._insert(db, rows)
            if new == len(rows):
                return Appended(tuple(events), 0, range(last - new + 1, last + 1))  # the only writer: without gaps
            # Only row by row is it known which are new.
            db.execute("ROLLBACK")
            self._begin(db)
            accepted, places = list[FeedbackEvent](), list[int]()
            for event, row in zip(events, rows, strict=True):
                new, last = self._insert(db, [row])
                if new:
                    accepted.append(event)
                    places.append(last)
        return Appended(tuple(accepted), len(events) - len(accepted), places)

    def _insert(self, db: sqlite3.Connection, rows: Sequence[tuple[int, str, int, bytes, int]]) -> tuple[int, int]:
        """Insert the rows whose event id is new to their user. Returns their number, and the place of the last one."""
        new = last = 0
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            insert = f"{_INSERT} {', '.join(['(?, ?, ?, ?, ?)'] * len(part))} ON CONFLICT (user_id, event_id) DO NOTHING"
            cursor = db.execute(insert, list(chain.from_iterable(part)))
            new, last = new + cursor.rowcount, cursor.lastrowid or 0
        return new, last

    def forget(self, user_id: int) -> Forgotten:
        """Delete the user's events, and overwrite them in the file and in the write-ahead file. Raises `LogWriteError`.

        A reader that is busy for longer than `busy_s` keeps the write-ahead file from being overwritten before its next use.
        """
        with self._writing as db:
            db.execute("DELETE FROM event WHERE user_id = ? AND event_id = ''", (user_id,))  # that of a former call
            count = db.execute("DELETE FROM event WHERE user_id = ?", (user_id,)).rowcount
            db.execute(f"{_INSERT} (?, '', ?, ?, ?)", (user_id, self._now_ms(), FORGOTTEN, ANYBODY))
            unassigned = db.execute("SELECT count(*) FROM event WHERE user_id IS NULL").fetchone()[0]
        with self._write_lock:
            overwrite_deleted(db, self._config.busy_s, self._config.retry_s)
        return Forgotten(count, unassigned)

    def expire(self) -> int:
        """Delete events that were kept for `keep_days`, at most `expire_rows`; return their number. Raises `LogWriteError`."""
        if self._config.keep_days is None:
            return 0
        with self._writing as db:
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
        with self._writing as db:
            db.execute("SAVEPOINT checked")
            db.execute(f"{_INSERT} (NULL, '', 0, zeroblob(?), ?)", (_CHECK_BYTES, self._writer))
            db.execute("ROLLBACK TO checked")
            db.execute(f"PRAGMA user_version = {FORMAT}")  # something to commit, which reaches the disk
        with self._read_lock:
            self._rows(0, 1)

    def _begin_writing(self) -> sqlite3.Connection:
        """Become the writer, in a transaction. Raises `LogWriteError`, `sqlite3.Error`."""
        if (db := self._db) is None:
            raise LogWriteError(str(self._path), "an open log", "a closed one")
        self._begin(db)
        if missing := self._file.missing():
            raise LogWriteError(
                str(self._path), "the log that was opened, with its -wal and -shm (restart the server)", missing
            )
        return db

    def _write_error(self, error: sqlite3.Error) -> LogWriteError:
        if is_busy(error):
            return LogBusyError(str(self._path), f"a turn to write within {self._config.busy_s:g} s", str(error))
        return LogWriteError(str(self._path), "room for a batch of feedback", str(error))

    def _begin(self, db: sqlite3.Connection) -> None:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            self._retry_busy(db, lambda: db.execute("BEGIN IMMEDIATE"))

    def _retry_busy(self, db: sqlite3.Connection, work: Callable[[], object]) -> None:
        retry_busy(db, work, self._config.busy_s, self._config.retry_s)

    def read(self, after: int, count: int | None = None) -> Records:
        """Return up to `count` records after a place. Raises `LogOpenError`."""
        with self._read_lock:
            rows, end = self._rows(after, count)
            if end == after:  # what was written after it is deleted by now
                self._others_to = min(self._others_to, after)
        return self._records(rows, end)

    def news(self, after: int) -> bool:
        """Return whether other open logs of the file wrote after a place. Raises `LogOpenError`."""
        with self._read_lock, self._reading(after) as db:
            version = pragma(db, "data_version")
            if version != self._version:
                self._others_to = (
                    db.execute(_OTHERS, (max(after, self._others_to), self._writer)).fetchone()[0] or self._others_to
                )
                # The version was read before the place: an event that was committed in between causes one needless look later.
                # In the other order it would be missed.
                self._version = version
            return self._others_to > after

    def ends(self) -> tuple[int, int]:
        """Return the first place in use and the last one that ever was. Raises `LogOpenError`."""
        with self._read_lock, self._reading(0) as db:
            first, last = db.execute(_ENDS).fetchone()
            return first, last

    def mark(self, place: int) -> LogMark:
        """Return what tells this file at `place` from others. Raises `LogOpenError`."""
        with self._read_lock, self._reading(place) as db:
            log_id, added_ms, writer = db.execute(_MARK, (place,)).fetchone()
            return LogMark(log_id, None if writer is None else (added_ms, writer))

    @property
    def unreadable(self) -> int:
        """Number of records that were skipped because they cannot be read."""
        return self._unreadable

    def resume(self, place: int, unreadable: int) -> None:
        """Count on from `unreadable` records up to `place`."""
        self._counted_to, self._unreadable = place, unreadable

    def _rows(self, after: int, count: int | None) -> tuple[list[_Row], int]:
        """Return up to `count` records after a place, and the place up to which they reach.

        Around damaged pages of the file the records are read one by one. Raises `LogOpenError`.
        """
        with self._reading(after) as db:
            try:
                rows = db.execute(_RECORDS, (after, -1 if count is None else count)).fetchall()
                return rows, rows[-1][0] if rows else after
            except sqlite3.DatabaseError as error:
                if code_of(error) not in _PARTLY_READABLE:
                    raise
                last = db.execute(_ENDS).fetchone()[1]
        end = max(after, last if count is None else min(last, after + count))
        found = list[_Row]()
        for place in range(after + 1, end + 1):
            try:
                found += db.execute(_RECORD_AT, (place,)).fetchall()
            except sqlite3.DatabaseError as error:
                found.append((place, None, error, 0))
        return found, end

    def _records(self, rows: Sequence[_Row], end: int) -> Records:
        forgotten = list[tuple[int, int]]()
        places, bodies, added_ms = list[int](), list[Any](), list[int]()
        for place, user_id, body, at_ms in rows:
            if body == FORGOTTEN and isinstance(user_id, int):
                forgotten.append((len(places), user_id))
            else:
                places.append(place)
                bodies.append(body)
                added_ms.append(at_ms)
        with suppress(ContractError, TypeError):  # not bytes, or not to be read as one batch
            corrected = [is_corrected(body) for body in bodies]
            sent = iter(read_records([body for body, is_ in zip(bodies, corrected, strict=True) if not is_]))
            events = [read_record(body) if is_ else next(sent) for body, is_ in zip(bodies, corrected, strict=True)]
            return Records(events, places, forgotten, added_ms, end)
        read = [self._read_record(place, body) for place, body in zip(places, bodies, strict=True)]
        return Records(
            [event for event in read if event is not None],
            [place for place, event in zip(places, read, strict=True) if event is not None],
            [(sum(event is not None for event in read[:before]), user) for before, user in forgotten],
            [at_ms for event, at_ms in zip(read, added_ms, strict=True) if event is not None],
            end,
        )

    def _read_record(self, place: int, body: object) -> FeedbackEvent | None:
        try:
            return read_record(body)
        except ContractError as error:
            self._skip(place, error)
            return None

    def _skip(self, place: int, error: ContractError) -> None:
        if place <= self._counted_to:  # a second replay
            return
        self._counted_to, self._unreadable = place, self._unreadable + 1
        if self._unreadable <= _NAMED_MAX:
            more = "; further ones are only counted" if self._unreadable == _NAMED_MAX else ""
            _logger.error("record %d of the feedback log %s is skipped: %s%s", place, self._path, error, more)

    @contextmanager
    def _reading(self, after: int) -> Iterator[sqlite3.Connection]:
        """The connection for reads, with errors as `LogOpenError`."""
        if self._reader is None:
            raise LogOpenError(str(self._path), "an open log", "a closed one")
        try:
            yield self._reader
        except sqlite3.Error as error:
            raise LogOpenError(str(self._path), f"events after place {after}", str(error)) from error

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


class _Writing:
    """A transaction, which is committed at the end of the block and undone after an error. Raises `LogWriteError`.

    A class, because a generator costs a write of ten events a tenth more.
    """

    def __init__(self, log: SqliteFeedbackLog) -> None:
        self._log = log

    def __enter__(self) -> sqlite3.Connection:
        self._log._write_lock.acquire()
        try:
            return self._log._begin_writing()
        except BaseException as error:
            self._end(error)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None and self._log._db is not None:
                self._log._db.execute("COMMIT")
        except sqlite3.Error as failed:
            error = failed
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        try:
            if self._log._db is not None and self._log._db.in_transaction:
                self._log._db.execute("ROLLBACK")
        finally:
            self._log._write_lock.release()
        if isinstance(error, sqlite3.Error):
            raise self._log._write_error(error) from error


def _monotonic_ms() -> int:
    return int(monotonic() * 1000)
