"""Event log in one SQLite file in write-ahead mode: the default, for the processes of one machine.

Each topic but `feedback` is a table of one partition, whose offsets increase and are never used twice. The topic `feedback` is
the feedback log (`feedback_log`), which keeps each event once; it is read here and written there. A record with an empty value
says that the user of its key was forgotten.

Writers take turns. A transaction survives the end of every process at once, and a power cut where `full_sync` is set.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic, time

from pocketrank.cloud.streams.event_log import (
    TOPICS,
    EventLog,
    EventLogOpenError,
    EventLogWriteError,
    NewRecord,
    Offsets,
    Record,
    Topic,
    TopicPart,
)
from pocketrank.cloud.streams.feedback_log import FeedbackLog, FeedbackLogError
from pocketrank.cloud.streams.sqlite_file import OpenedFile, is_busy, overwrite_deleted, retry_busy
from pocketrank.device.codec import to_msgpack

__all__ = ["Retention", "SqliteEventLog", "SqliteEventsConfig"]

_APPLICATION_ID = 0x706B726C  # "pkrl", in the header of the file
_FORMAT = 1
_TABLES: tuple[Topic, ...] = tuple(topic for topic in TOPICS if topic != "feedback")
_OF_USERS: tuple[Topic, ...] = ("pages", "users", "samples")
_POLL_S = 0.005
_EXPIRE_ROWS = 500
_CHECKPOINT_S = 0.5
_FRAMES_MAX = 4096
"""Pages of 4 KB of the write-ahead file beyond which writers wait for milliseconds until it can begin anew."""
_PAUSE_S = 0.1
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Retention:
    """How long records of a topic are kept; None = without a limit."""

    days: float | None = None
    bytes_max: int | None = None
    """Size of all values. Beyond it the oldest records go."""


@dataclass(frozen=True)
class SqliteEventsConfig:
    """Durability, retention and waiting times."""

    full_sync: bool = False
    """Whether records survive a power cut, and not only the end of processes: one fsync a transaction."""
    busy_s: float = 5.0
    """Longest wait for the writers of other processes, in seconds; then the call fails."""
    retry_s: float = 0.001
    """Mean pause in seconds between two attempts to become the writer."""
    retention: Mapping[str, Retention] = field(
        default_factory=lambda: {
            "pages": Retention(days=8, bytes_max=8 << 30),
            "samples": Retention(days=30, bytes_max=8 << 30),
            "parameters": Retention(days=2, bytes_max=2 << 30),
        }
    )
    """By topic. Items and users are kept for ever: they are the catalogue."""
    expire_every_s: float = 60.0
    """Pause in seconds between two searches for records that were kept for long enough."""


class SqliteEventLog(EventLog):
    """Log in the file at `path`, which is made if missing. Raises `EventLogOpenError`."""

    def __init__(self, path: Path, feedback: FeedbackLog | None = None, config: SqliteEventsConfig | None = None) -> None:
        """`feedback` is read as the topic of that name, and stays open when this log is closed."""
        self._path, self._feedback, self._config = path, feedback, config or SqliteEventsConfig()
        self._write_lock, self._read_lock, self._closed = Lock(), Lock(), Event()
        self._appended = Event()
        try:
            self._file = OpenedFile(path)
            db = self._connect()
            try:
                retry_busy(db, lambda: self._prepare(db), self._config.busy_s, self._config.retry_s)
                reader, self._keeper = self._connect(), self._connect()
                self._file.opened()
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            got = "one that another process has locked" if is_busy(error) else str(error)
            raise EventLogOpenError(str(path), "an event log", got) from error
        db.execute("PRAGMA busy_timeout = 0")  # from here on `retry_busy` waits
        self._db: sqlite3.Connection | None = db
        self._reader: sqlite3.Connection | None = reader
        self._keeping = Thread(target=self._keep, name="pocketrank-events", daemon=True)
        self._keeping.start()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=self._config.busy_s, isolation_level=None, check_same_thread=False)

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN")  # one consistent view: another process may be making the log
        found = tuple(db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        is_empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not (found == (_APPLICATION_ID, _FORMAT) or (found == (0, 0) and is_empty)):
            got = f"a database of kind {found[0]}, format {found[1]}"
            raise EventLogOpenError(str(self._path), f"an event log of format {_FORMAT}", got)
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._config.full_sync else 'NORMAL'}")
        db.execute("PRAGMA secure_delete = ON")  # deleted records are overwritten
        db.execute("PRAGMA wal_autocheckpoint = 0")  # it syncs the disk, for which no append should wait
        if not is_empty:
            return  # others may write without a pause: an open that took a turn to write might wait for long
        db.execute("BEGIN IMMEDIATE")
        for topic in _TABLES:
            db.execute(
                f"CREATE TABLE IF NOT EXISTS {topic} (place INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL, "
                "appended_ms INTEGER NOT NULL, value BLOB NOT NULL)"
            )
        for topic in _OF_USERS:
            db.execute(f"CREATE INDEX IF NOT EXISTS {topic}_key ON {topic} (key)")
        db.execute(
            "CREATE TABLE IF NOT EXISTS consumer (name TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, "
            "next INTEGER NOT NULL, PRIMARY KEY (name, topic, partition)) WITHOUT ROWID"
        )
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {_FORMAT}")
        db.execute("COMMIT")

    def append(self, topic: Topic, records: Sequence[NewRecord]) -> None:
        """Append records, all or none. Raises `EventLogWriteError`."""
        with self._writing() as db:
            self._insert(db, topic, records)
        self._appended.set()

    def append_at_once(self, topic: Topic, records: Sequence[NewRecord]) -> bool:
        """Append unless somebody else is writing, or the disk must be waited for. Raises `EventLogWriteError`."""
        if self._config.full_sync or not self._write_lock.acquire(blocking=False):
            return False
        try:
            if (db := self._db) is None:
                raise EventLogWriteError(str(self._path), "an open log", "a closed one")
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if is_busy(error):
                    return False
                raise
            with self._transaction(db):
                self._insert(db, topic, records)
        except sqlite3.Error as error:
            raise self._write_error(error) from error
        finally:
            self._write_lock.release()
        self._appended.set()
        return True

    def _insert(self, db: sqlite3.Connection, topic: Topic, records: Sequence[NewRecord]) -> None:
        if topic == "feedback":
            raise EventLogWriteError(str(self._path), "feedback in the feedback log, which keeps each event once", "an append")
        now = int(1000 * time())
        rows = [(record.key, now, record.value) for record in records]
        db.executemany(f"INSERT INTO {topic} (key, appended_ms, value) VALUES (?, ?, ?)", rows)

    def read(self, topic: Topic, after: Offsets, count: int = 1000, wait_s: float = 0.0) -> TopicPart:
        """Return up to `count` records after a place. Raises `EventLogOpenError`."""
        until = monotonic() + wait_s
        while True:
            self._appended.clear()
            part = self._feedback_part(after, count) if topic == "feedback" else self._part(topic, after.get(0, 0), count)
            left = until - monotonic()
            if part.records or part.offsets != after or left <= 0 or self._closed.is_set():
                return part
            self._appended.wait(min(left, _POLL_S))

    def _part(self, topic: Topic, first: int, count: int) -> TopicPart:
        with self._reading() as db:
            rows = db.execute(
                f"SELECT key, value, appended_ms, place FROM {topic} WHERE place >= ? ORDER BY place LIMIT ?", (first, count)
            ).fetchall()
        records = [Record(key, value, appended_ms, 0, place) for key, value, appended_ms, place in rows]
        return TopicPart(records, {0: records[-1].offset + 1} if records else {0: first} if first else {})

    def _feedback_part(self, after: Offsets, count: int) -> TopicPart:
        if self._feedback is None:
            raise EventLogOpenError(str(self._path), "a log that was opened with its feedback", "one without")
        place = max(0, after.get(0, 1) - 1)
        try:
            found = self._feedback.read(place, count)
        except FeedbackLogError as error:
            raise EventLogOpenError(str(self._path), "a feedback log that can be read", str(error)) from error
        all_records = [
            Record(event.user_id, to_msgpack(event), at_ms, 0, at)
            for event, at_ms, at in zip(found.events, found.added_ms, found.places, strict=True)
        ]
        records, start = list[Record](), 0
        for before, user in found.forgotten:
            records += all_records[start:before]
            start, last = before, records[-1] if records else Record(0, b"", 0, 0, place)
            records.append(Record(user, b"", last.appended_ms, 0, last.offset))
        records += all_records[start:]
        return TopicPart(records, {0: found.end + 1} if found.end > place or after else {})

    def ends(self, topic: Topic) -> Offsets:
        """Return the place after the last record of a topic. Raises `EventLogOpenError`."""
        if topic == "feedback":
            if self._feedback is None:
                return {}
            return {0: self._feedback.ends()[1] + 1}
        with self._reading() as db:
            last = db.execute("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = ?), 0)", (topic,)).fetchone()[0]
        return {0: last + 1} if last else {}

    def commit(
        self, consumer: str, offsets: Mapping[Topic, Offsets], topic: Topic | None = None, records: Sequence[NewRecord] = ()
    ) -> None:
        """Keep places and append records, all or nothing. Raises `EventLogWriteError`."""
        with self._writing() as db:
            if topic is not None and records:
                self._insert(db, topic, records)
            rows = [(consumer, name, part, place) for name, places in offsets.items() for part, place in places.items()]
            db.executemany("INSERT OR REPLACE INTO consumer VALUES (?, ?, ?, ?)", rows)
        self._appended.set()

    def committed(self, consumer: str) -> Mapping[Topic, Offsets]:
        """Return the places that were last committed. Raises `EventLogOpenError`."""
        with self._reading() as db:
            rows = db.execute("SELECT topic, partition, next FROM consumer WHERE name = ?", (consumer,)).fetchall()
        found: dict[Topic, dict[int, int]] = {}
        for topic, partition, place in rows:
            found.setdefault(topic, {})[partition] = place
        return found

    def forget(self, user_id: int) -> int:
        """Delete the records of a user, and overwrite them; leave one that says so. Raises `EventLogWriteError`."""
        deleted = 0
        with self._writing() as db:
            for topic in _OF_USERS:
                deleted += db.execute(f"DELETE FROM {topic} WHERE key = ?", (user_id,)).rowcount
                self._insert(db, topic, [NewRecord(user_id, b"")])
        with self._write_lock:
            if self._db is not None:
                overwrite_deleted(self._db, self._config.busy_s, self._config.retry_s)
        self._appended.set()
        return deleted

    def expire(self) -> int:
        """Delete some of the records that were kept for long enough; return their number. Raises `EventLogWriteError`."""
        deleted, now = 0, int(1000 * time())
        for topic, retention in self._config.retention.items():
            with self._writing() as db:
                if retention.days is not None:
                    before = now - round(retention.days * _DAY_MS)
                    deleted += db.execute(
                        f"DELETE FROM {topic} WHERE place IN (SELECT place FROM {topic} WHERE place <= (SELECT min(place) + ? "
                        f"FROM {topic}) AND appended_ms < ? LIMIT ?)",
                        (_EXPIRE_ROWS, before, _EXPIRE_ROWS),
                    ).rowcount
                if retention.bytes_max is not None:
                    deleted += self._shorten(db, topic, retention.bytes_max)
        return deleted

    def _shorten(self, db: sqlite3.Connection, topic: str, bytes_max: int) -> int:
        """Delete the oldest records of a topic that is too large, by the mean size of its latest records."""
        first, last = db.execute(f"SELECT coalesce(min(place), 0), coalesce(max(place), 0) FROM {topic}").fetchone()
        mean = db.execute(
            f"SELECT coalesce(avg(length(value)), 0) FROM (SELECT value FROM {topic} ORDER BY place DESC LIMIT 200)"
        ).fetchone()[0]
        excess = int((last - first + 1) - bytes_max / mean) if mean else 0
        if excess <= 0:
            return 0
        until = first + min(excess, _EXPIRE_ROWS)
        return int(db.execute(f"DELETE FROM {topic} WHERE place < ?", (until,)).rowcount)

    def _keep(self) -> None:
        """Merge the write-ahead file, and delete what is old, now and then."""
        expire_at = monotonic() + self._config.expire_every_s
        while not self._closed.wait(_CHECKPOINT_S):
            with suppress(sqlite3.Error):  # somebody else does it, or the disk is full, which the checks of readiness say
                _, frames, _ = self._keeper.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if frames > _FRAMES_MAX:  # while there are always writers, nobody begins the file anew by himself
                    self._keeper.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            if monotonic() >= expire_at:
                with suppress(EventLogWriteError):
                    while self.expire() >= _EXPIRE_ROWS and not self._closed.wait(_PAUSE_S):
                        pass
                expire_at = monotonic() + self._config.expire_every_s

    def check(self) -> None:
        """Raise `EventLogError` where an append or a read would fail."""
        with self._writing() as db:
            db.execute(f"PRAGMA user_version = {_FORMAT}")  # something to commit, which reaches the disk
        self._part("pages", 0, 1)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            if (db := self._db) is None:
                raise EventLogWriteError(str(self._path), "an open log", "a closed one")
            try:
                retry_busy(db, lambda: db.execute("BEGIN IMMEDIATE"), self._config.busy_s, self._config.retry_s)
                with self._transaction(db):
                    yield db
            except sqlite3.Error as error:
                raise self._write_error(error) from error

    @contextmanager
    def _transaction(self, db: sqlite3.Connection) -> Iterator[None]:
        """A transaction that has begun, to be committed at the end of the block and undone after an error."""
        try:
            if missing := self._file.missing():
                raise EventLogWriteError(str(self._path), "the log that was opened, with its -wal and -shm", missing)
            yield
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _write_error(self, error: sqlite3.Error) -> EventLogWriteError:
        expected = f"a turn to write within {self._config.busy_s:g} s" if is_busy(error) else "room for records"
        return EventLogWriteError(str(self._path), expected, str(error))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock:
            if self._reader is None:
                raise EventLogOpenError(str(self._path), "an open log", "a closed one")
            try:
                yield self._reader
            except sqlite3.Error as error:
                raise EventLogOpenError(str(self._path), "records that can be read", str(error)) from error

    def close(self) -> None:
        """Close the log."""
        self._closed.set()
        self._appended.set()
        self._keeping.join()
        with self._write_lock, self._read_lock:
            for db in (self._keeper, self._reader, self._db):
                if db is not None:
                    db.close()
            self._reader = self._db = None
