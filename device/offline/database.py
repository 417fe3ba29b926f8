"""A SQLite file that raises no error in use: a failed write returns False, a damaged file is replaced by a new one.

The file is in write-ahead mode and locked by one process. A write that returned True survives a process killed with -9. While
the file is open nothing waits for the disk, so no swipe does: syncing at each checkpoint (`synchronous` NORMAL) was measured to
delay writes by 40 to 60 ms, and by 400 on a busy machine, against 1. The price is paid at a power cut: the last seconds of
writes, which the system still held in memory, are lost, and in the seconds after a checkpoint the file may be damaged, which
then is replaced by a new one. `close` syncs.

Errors::

    DatabaseError              a file that cannot be opened; names it
    ├── ForeignDatabaseError   another program's database, or one of another format; it is left unchanged
    ├── DatabaseHeldError      a file that is open already, in another process or in this one
    └── DatabaseOpenError      no permission, a folder in its place, or a full disk
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from pocketrank.device.contract import MismatchError
from pocketrank.device.files import sync

__all__ = ["Database", "DatabaseError", "DatabaseHeldError", "DatabaseOpenError", "ForeignDatabaseError", "Statement"]

_APPLICATION_ID = 0x706B7264  # "pkrd" in the file's header, to recognize another program's database
_FORMAT = 1
_PAGE_BYTES = 2048  # writes of one event were fastest with this; 1024 and 4096 took 5 to 15 % longer
_WAL_PAGES_MAX = 2048  # without calls of `tidy` a write folds in the write-ahead file at this length: 4 MiB, 10 ms

_HEAD_BYTES, _VERSIONS, _VERSION_MAX = 20, slice(18, 20), 2  # of SQLite's file format

_HELD = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NOT_DAMAGE = (
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS,
)  # fmt: skip

Statement = tuple[str, Iterable[Sequence[Any]]]
"""SQL, and the rows of values that it is run with."""


class DatabaseError(MismatchError):
    """A file that cannot be opened. `where` is its path."""


class ForeignDatabaseError(DatabaseError):
    """Another program's database, or one of another format."""


class DatabaseHeldError(DatabaseError):
    """A file that is open already, in another process or in this one."""


class DatabaseOpenError(DatabaseError):
    """No permission, a folder in its place, or a full disk."""


class Database:
    """The file at `path`, created with `schema` when it is missing. Calls from several threads take turns.

    A damaged file is moved to `path` + `.damaged`, and replaces an earlier one there. Raises `DatabaseError`.
    """

    def __init__(self, path: Path, schema: Sequence[str], wal_bytes: int) -> None:
        """`tidy` folds in a write-ahead file that is longer than `wal_bytes`."""
        self._path, self._schema, self._wal_bytes, self._lock = path, schema, wal_bytes, Lock()
        self._wal = path.with_name(path.name + "-wal")
        self.damaged = 0
        """Damaged files that were moved aside."""
        self.failed = 0
        """Writes that failed."""
        self._broken = False  # damage was found after the file was opened
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
        raise DatabaseOpenError(str(path), "a database that was just created", "a damaged one")

    def write(self, sql: str, values: Sequence[Any] = ()) -> bool:
        """Run one statement; False when it failed and changed nothing. Runs on the path of a swipe."""
        return self._attempt(lambda cursor: cursor.execute(sql, values))

    def write_all(self, statements: Iterable[Statement]) -> bool:
        """Run statements in one transaction; False when it failed and changed nothing."""

        def run(cursor: sqlite3.Cursor) -> None:
            cursor.execute("BEGIN IMMEDIATE")
            for sql, rows in statements:
                cursor.executemany(sql, rows)
            cursor.execute("COMMIT")

        return self._attempt(run)

    def _attempt(self, run: Callable[[sqlite3.Cursor], object]) -> bool:
        with self._lock:
            try:
                if self._db is not None:
                    run(self._cursor)
                    return True
            except sqlite3.Error as error:
                self._note(error)
            self.failed += 1
            return False

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return rows; none when the file is found damaged, or is closed."""
        with self._lock:
            if self._db is None:
                return []
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                self._note(error)
                return []

    def tidy(self) -> bool:
        """Fold a long write-ahead file into the database. Writes wait for that: 1 ms for 1 MiB.

        A file that was found damaged is moved aside instead; True when an empty one has replaced it.
        """
        with self._lock:
            if self._db is None:
                return False
            if self._broken:
                return self._replace()
            with contextlib.suppress(OSError):
                if self._wal.stat().st_size <= self._wal_bytes:
                    return False
            try:
                self._cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:
                self._note(error)
            return False

    def close(self) -> None:
        """Fold the write-ahead file into the database, sync and close. A second call does nothing."""
        with self._lock:
            if self._db is not None:
                self._db.execute("PRAGMA synchronous = FULL")
                self._close()
                with contextlib.suppress(OSError):  # what was folded in earlier, and the names of new files
                    sync(self._path)
                    sync(self._path.parent)

    def _open(self) -> bool:
        """Open the file; False when it is damaged. Raises `DatabaseError`."""
        try:
            db = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise DatabaseOpenError(str(self._path), "a file that can be opened", str(error)) from error
        try:
            self._prepare(db)
        except BaseException as error:
            db.close()
            if not isinstance(error, sqlite3.Error | UnicodeDecodeError):  # the latter: SQLite's message quotes damaged text
                raise
            if (code := _code(error)) in _HELD:
                raise DatabaseHeldError(str(self._path), "a file that is not open", "one that is open elsewhere") from error
            if code in _NOT_DAMAGE:
                raise DatabaseOpenError(str(self._path), "a file that can be written", str(error)) from error
            return False
        self._db, self._cursor = db, db.cursor()
        return True

    def _prepare(self, db: sqlite3.Connection) -> None:
        with self._path.open("rb") as file:
            if max(file.read(_HEAD_BYTES)[_VERSIONS], default=0) > _VERSION_MAX:
                raise sqlite3.DatabaseError("damaged")  # SQLite opens what seems to be a later format, and never writes to it
        # Exclusive before the first access: no shared memory file, a third of the system calls, and no second process.
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
        db.execute("BEGIN IMMEDIATE")  # takes the lock even when there is nothing to create
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
        """Roll back a failed transaction, and remember damage."""
        self._broken |= _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        if self._db is not None and self._db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _close(self) -> None:
        if self._db is not None:
            self._cursor.close()  # after a failed statement an open one would keep the file locked
            self._db.close()
            self._db = None

    def _replace(self) -> bool:
        self._close()
        try:
            self._move_aside()
            self._broken = not self._open()
        except (DatabaseError, OSError):  # a disk error: without a file everything is kept in memory
            return False
        return not self._broken

    def _move_aside(self) -> None:
        self.damaged += 1
        # The write-ahead file first: after a kill between the two, a new database must not find the old one's.
        for path in (self._wal, self._path):
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, path.with_name(path.name.replace(self._path.name, self._path.name + ".damaged")))


def _code(error: Exception) -> int:
    """Return SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
