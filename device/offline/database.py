"""One SQLite file that never fails its user: a write that does not get through says so, a damaged file gives way to a new one.

In write-ahead mode, held by one process. What a write returned True for survives a process killed with -9. While it is open
nothing waits for the disk, so that no swipe does: syncing at each checkpoint (`synchronous` NORMAL) was measured to hold up
writes for 40 to 60 ms, and 400 on a busy machine, against 1. The price is paid at a power cut: it takes what the system had not
written yet, some seconds, and in the seconds after a checkpoint it may damage the file, which then gives way to a new one. To
close is to sync.

Errors::

    DatabaseError              the file cannot be had; names it
    ├── ForeignDatabaseError   another program's database, or ours of another format. It is left as it is
    ├── DatabaseHeldError      another process has it, or somebody else in this one
    └── DatabaseOpenError      no permission, a folder in its place, a full disk
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

__all__ = ["Database", "DatabaseError", "DatabaseHeldError", "DatabaseOpenError", "ForeignDatabaseError", "Statement"]

_APPLICATION_ID = 0x706B7264  # "pkrd", in the file's header: another program's database is not taken for ours
_FORMAT = 1
_PAGE_BYTES = 2048  # writes of one event were fastest with this; 1024 and 4096 took 5 to 15 % longer
_WAL_PAGES_MAX = 2048  # where nobody tidies, a write does it: 4 MiB, 10 ms

_HELD = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NOT_DAMAGE = (
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS,
)  # fmt: skip

Statement = tuple[str, Iterable[Sequence[Any]]]
"""SQL, and the rows of values that it is run with."""


class DatabaseError(Exception):
    """The file cannot be had. `where` names it, `expected` and `got` say why."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got: {got} - at {where}")
        self.where, self.expected, self.got = where, expected, got


class ForeignDatabaseError(DatabaseError):
    """Another program's database, or ours of another format."""


class DatabaseHeldError(DatabaseError):
    """Another process has it open, or somebody else in this one."""


class DatabaseOpenError(DatabaseError):
    """No permission, a folder in its place, or a full disk."""


class Database:
    """The file at `path`, made with `schema` when there is none. Safe to call from several threads, which take turns.

    A damaged file is moved to `path` + `.damaged`, where the next one takes its place. Raises `DatabaseError`.
    """

    def __init__(self, path: Path, schema: Sequence[str], wal_bytes: int) -> None:
        """`tidy` folds in a write-ahead file of more than `wal_bytes`."""
        self._path, self._schema, self._wal_bytes, self._lock = path, schema, wal_bytes, Lock()
        self._wal = path.with_name(path.name + "-wal")
        self.damaged = 0
        """files that were moved aside"""
        self.failed = 0
        """writes that did not get through"""
        self._broken = False  # found damaged since it was opened
        self._db: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._open():
                return
            self._move_aside()
            if self._open():
                return
        except OSError as error:
            raise DatabaseOpenError(str(path), "a place for a file", str(error)) from error
        raise DatabaseOpenError(str(path), "a database that was just made to be whole", "a damaged one")

    def write(self, sql: str, values: Sequence[Any] = ()) -> bool:
        """Run one statement; False when it did not get through, and then nothing has changed. On the path of a swipe."""
        with self._lock:
            if self._db is None:
                self.failed += 1
                return False
            try:
                self._cursor.execute(sql, values)
            except sqlite3.Error as error:
                self.failed += 1
                self._note(error)
                return False
            return True

    def write_all(self, statements: Iterable[Statement]) -> bool:
        """Run them in one transaction: all or none."""
        with self._lock:
            if self._db is None:
                self.failed += 1
                return False
            try:
                self._cursor.execute("BEGIN IMMEDIATE")
                for sql, rows in statements:
                    self._cursor.executemany(sql, rows)
                self._cursor.execute("COMMIT")
            except sqlite3.Error as error:
                self.failed += 1
                self._note(error)
                return False
            return True

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows; none when the file turns out to be damaged, or is closed."""
        with self._lock:
            if self._db is None:
                return []
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                self._note(error)
                return []

    def tidy(self) -> bool:
        """Fold a long write-ahead file into the database. A write meanwhile waits: 1 ms for 1 MiB.

        When the file was found damaged since it was opened, it is moved aside; True when an empty one was begun.
        """
        with self._lock:
            if self._db is None:
                return False
            if self._broken:
                return self._begin_anew()
            with contextlib.suppress(OSError):
                if self._wal.stat().st_size <= self._wal_bytes:
                    return False
            try:
                self._cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:
                self._note(error)
            return False

    def close(self) -> None:
        """Fold the write-ahead file into the database, sync, and let go of it; a second call does nothing."""
        with self._lock:
            if self._db is not None:
                self._db.execute("PRAGMA synchronous = FULL")
            self._close()

    def _open(self) -> bool:
        """False when the file is damaged."""
        try:
            db = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise DatabaseOpenError(str(self._path), "a file that can be opened", str(error)) from error
        try:
            self._prepare(db)
        except BaseException as error:
            db.close()
            if not isinstance(error, (sqlite3.Error, UnicodeDecodeError)):  # the latter for a damaged name in SQLite's message
                raise
            if (code := _code(error)) in _HELD:
                raise DatabaseHeldError(str(self._path), "a file of our own", "one that is open elsewhere") from error
            if code in _NOT_DAMAGE:
                raise DatabaseOpenError(str(self._path), "a file that can be written", str(error)) from error
            return False
        self._db, self._cursor = db, db.cursor()
        return True

    def _prepare(self, db: sqlite3.Connection) -> None:
        # Exclusive before the first access: no shared memory file, a third of the system calls, and nobody else comes in.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        kind, format_ = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        fresh = kind == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not fresh and (kind, format_) != (_APPLICATION_ID, _FORMAT):
            got = f"a database of kind {kind}, format {format_}"
            raise ForeignDatabaseError(str(self._path), f"a device's database of format {_FORMAT}", got)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES_MAX}")
        db.execute("BEGIN IMMEDIATE")  # takes the lock even of a file that is whole already
        if fresh:
            for statement in self._schema:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        db.execute("COMMIT")
        tables = db.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        if not fresh and (tables != len(self._schema) or db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok"):
            raise sqlite3.DatabaseError("damaged")

    def _note(self, error: sqlite3.Error) -> None:
        """Leave a transaction that failed, and remember damage."""
        self._broken |= _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        if self._db is not None and self._db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _close(self) -> None:
        if self._db is not None:
            self._cursor.close()  # after a statement that failed it would keep the file locked
            self._db.close()
            self._db = None

    def _begin_anew(self) -> bool:
        self._close()
        try:
            self._move_aside()
            self._broken = not self._open()
        except (DatabaseError, OSError):  # the disk; without a file everything goes on in memory
            return False
        return not self._broken

    def _move_aside(self) -> None:
        self.damaged += 1
        # The write-ahead file first: were we killed between the two, a new database would be given the old one's.
        for path in (self._wal, self._path):
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, path.with_name(path.name.replace(self._path.name, self._path.name + ".damaged")))


def _code(error: Exception) -> int:
    """SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
