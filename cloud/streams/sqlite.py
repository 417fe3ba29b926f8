"""The feedback log in one SQLite file in write-ahead mode: the embedded default, for the serving processes of one machine.

Table `event`: `place` counts up in the order of acceptance, `event_id` is unique across all processes, `body` is the event as
MessagePack, `writer` is a random number of the opened log that wrote it, by which `news` knows its own. One transaction a
batch.

Any number of processes may have the file open; it must be on a local disk, because they share memory beside it. SQLite's
locks are the kernel's: a process killed with -9 lets go of them, and what it had not committed is not there. Writers take
turns, and one that waits longer than `busy_s` refuses its batch. Readers wait for nobody.
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

from pocketrank.cloud.streams.feedback_log import Appended, FeedbackLog, LogBusyError, LogOpenError, LogWriteError
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError, FeedbackEvent

__all__ = ["SqliteFeedbackLog", "SqliteLogConfig"]

_APPLICATION_ID = 0x706B726B  # "pkrk", in the file's header: another program's database is not taken for a log
_FORMAT = 2
_WITHOUT_WRITER = 1
"""The format before, of one process alone. It is brought up to date when it is opened."""

_TABLE = """CREATE TABLE event (
    place INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL, writer INTEGER NOT NULL DEFAULT 0
)"""
_ROWS = 64
"""Most rows of one statement: ten took 20 µs by one and 29 by ten, which let go of the interpreter as often."""
_REPLAY = "SELECT place, body FROM event WHERE place > ? ORDER BY place LIMIT ?"
# Our own bodies need not be read, but where they end must be known.
_NEWS = "SELECT place, CASE writer WHEN ? THEN NULL ELSE body END FROM event WHERE place > ? ORDER BY place"


@dataclass(frozen=True)
class SqliteLogConfig:
    """How the file is written."""

    full_sync: bool = True
    """Survive a power cut, not only a killed process: one fsync a transaction."""
    bytes_max: int | None = None
    """The file does not grow past this; None leaves it to the disk. Past it a batch is refused like on a full disk."""
    busy_s: float = 5.0
    """Longest wait for the writers of other processes, in seconds; then the batch is refused."""
    retry_s: float = 0.001
    """Mean pause between two looks whether it is our turn. SQLite's own grow to 100 ms, and so did the slowest batches."""
    replay_rows: int = 4096
    """Events read at a time by `replay`; appends go on in between."""


class SqliteFeedbackLog(FeedbackLog):
    """The log in the file at `path`, made when missing. Raises `LogOpenError`."""

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
            self._patiently(db, lambda: self._prepare(db))
            # A second connection: reads do not wait for a sync of the disk in another thread.
            reader = self._connect()
            self._version = reader.execute("PRAGMA data_version").fetchone()[0]
            self._told = reader.execute("SELECT coalesce(max(place), 0) FROM event").fetchone()[0]
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error):
                got = "one that another process holds" if _is_busy(error) else str(error)
                raise LogOpenError(str(path), "a feedback log of our own", got) from error
            raise
        db.execute("PRAGMA busy_timeout = 0")  # from here on `_begin` waits
        self._db: sqlite3.Connection | None = db
        self._reader: sqlite3.Connection | None = reader

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=self._config.busy_s, isolation_level=None, check_same_thread=False)

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN")  # one look at all of it, or another process that makes the log is met half-way
        self._is_fresh(db)  # what is no log is left as it is
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._config.full_sync else 'NORMAL'}")
        if self._config.bytes_max is not None:
            page = db.execute("PRAGMA page_size").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {max(1, self._config.bytes_max // page)}")
        db.execute("BEGIN IMMEDIATE")
        if self._is_fresh(db):  # again: of two processes that make a log, one is first
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
        """Keep the new ones of `events` in one transaction. Raises `LogWriteError`; then none of them is kept."""
        rows = [(event.event_id, to_msgpack(event), self._writer) for event in events]
        with self._write_lock:
            db = self._open_for_writing()
            try:
                self._begin(db)
                new = self._insert(db, rows)
                if new < len(rows):  # which of them, is only known one by one
                    db.execute("ROLLBACK")
                    self._begin(db)
                    accepted = tuple(event for event, row in zip(events, rows, strict=True) if self._insert(db, [row]))
                else:
                    accepted = tuple(events)
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._refused(db, error) from error
        return Appended(accepted, len(events) - len(accepted))

    def _insert(self, db: sqlite3.Connection, rows: Sequence[tuple[str, bytes, int]]) -> int:
        """Insert what is not there yet; how many that were."""
        new = 0
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            values = ", ".join(["(?, ?, ?)"] * len(part))
            insert = f"INSERT INTO event (event_id, body, writer) VALUES {values} ON CONFLICT (event_id) DO NOTHING"
            new += db.execute(insert, list(chain.from_iterable(part))).rowcount
        return new

    def check(self) -> None:
        """Write the file's header anew, as it is. Raises `LogWriteError`."""
        with self._write_lock:
            db = self._open_for_writing()
            try:
                self._begin(db)
                db.execute(f"PRAGMA user_version = {_FORMAT}")
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._refused(db, error) from error

    def _begin(self, db: sqlite3.Connection) -> None:
        self._patiently(db, lambda: db.execute("BEGIN IMMEDIATE"))

    def _patiently(self, db: sqlite3.Connection, work: Callable[[], object]) -> None:
        """Do `work`, again while another process is in its way: SQLite itself does not wait for a change of the journal."""
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
            # At random, so that two that wait do not look at the same time again and again.
            sleep(self._random.uniform(0, 2 * self._config.retry_s))

    def _open_for_writing(self) -> sqlite3.Connection:
        if self._db is None:
            raise LogWriteError(str(self._path), "an open log", "a closed one")
        return self._db

    def _refused(self, db: sqlite3.Connection, error: sqlite3.Error) -> LogWriteError:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if _is_busy(error):
            return LogBusyError(str(self._path), f"a turn to write within {self._config.busy_s:g} s", str(error))
        return LogWriteError(str(self._path), "room for a batch of feedback", str(error))

    def replay(self) -> Iterator[FeedbackEvent]:
        """Every event in the order of acceptance. Raises `LogOpenError` at one that cannot be read."""
        place = 0
        while rows := self._read(_REPLAY, (place, self._config.replay_rows), place):
            for place, body in rows:
                yield self._event(place, body)
        with self._read_lock:
            self._told = max(self._told, place)

    def poll(self) -> Sequence[FeedbackEvent]:
        """What other opened logs of the same file wrote since the last call. Raises `LogOpenError`."""
        with self._read_lock:
            db = self._open_for_reading()
            try:
                version = db.execute("PRAGMA data_version").fetchone()[0]
                if version == self._version:
                    return ()
                rows = db.execute(_NEWS, (self._writer, self._told)).fetchall()
            except sqlite3.Error as error:
                raise LogOpenError(str(self._path), f"events after place {self._told}", str(error)) from error
            events: list[FeedbackEvent] = []
            for place, body in rows:
                if body is not None:
                    try:
                        events.append(self._event(place, body))
                    except LogOpenError:
                        if events:  # these first; it is come upon again
                            return events
                        self._told = place  # named once, and those after it are told
                        raise
                self._told = place
            # A commit between the two reads is told now and looked for again in vain; the other way round it would be lost.
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
            return from_msgpack(body, FeedbackEvent)
        except ContractError as error:
            raise LogOpenError(str(self._path), f"a feedback event at place {place}", str(error)) from error

    def close(self) -> None:
        """Let go of the log; the last process to do so folds the write-ahead file into it."""
        with self._write_lock, self._read_lock:
            for db in (self._reader, self._db):
                if db is not None:
                    db.close()
            self._reader = self._db = None


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
