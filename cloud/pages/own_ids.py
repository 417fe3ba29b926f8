"""Codes of a team's own ids in serving: those of the run's dictionaries, and of texts that were first seen since.

A text that the run does not know gets its code with the first feedback about it, by the rules of
`pocketrank.device.contract.ids`. Code and text are kept in an SQLite file beside the feedback log, which all processes of a
machine share: whichever sees a text first, all of them give it one code, and never one code to two texts. Nothing of the file
is kept in memory, because a look-up takes microseconds, and is needed for unknown texts alone.

A code is durable before an event with it is accepted. When the disk is full, the event is refused as any other feedback is.

Errors::

    FeedbackLogError           the file cannot be opened, read or written (`pocketrank.cloud.streams.feedback_log`)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.streams.feedback_log import LogBusyError, LogOpenError, LogWriteError
from pocketrank.cloud.streams.sqlite_file import OpenedFile, is_busy, overwrite_deleted, retry_busy
from pocketrank.device.contract import code_choices

__all__ = ["OwnIds"]

_BUSY_S = 5.0
"""Longest wait for the writers of other processes, in seconds."""
_RETRY_S = 0.01
_FORMAT = 1
_APPLICATION_ID = 0x706B6964  # "pkid", in the header of the file
_TABLE = """CREATE TABLE id (kind TEXT NOT NULL, text TEXT NOT NULL, code INTEGER NOT NULL,
    PRIMARY KEY (kind, text), UNIQUE (kind, code)) WITHOUT ROWID"""
_CODE = "SELECT code FROM id WHERE kind = ? AND text = ?"
_TEXT = "SELECT text FROM id WHERE kind = ? AND code = ?"
_PUT = "INSERT INTO id VALUES (?, ?, ?) ON CONFLICT (kind, text) DO UPDATE SET code = excluded.code"
_DELETE = "DELETE FROM id WHERE kind = ? AND text = ?"


class OwnIds:
    """Codes of own ids, from the dictionaries of a run and from the file at `path`, which is made if missing.

    Without a `path` what grows is kept in memory. A run without dictionaries needs no file. Raises `LogOpenError`. Safe to call
    from several threads.
    """

    def __init__(self, published: PublishedIds, path: Path | None = None, bytes_max: int | None = None) -> None:
        """At a size of `bytes_max` the file takes no new ids, as on a full disk."""
        self.published, self.former = published, published
        """dictionaries of the run that is served, and of the one before it"""
        self._bytes_max = bytes_max
        self._where = str(path or "memory")
        self._read_lock, self._write_lock = Lock(), Lock()
        self._reader = self._writer = None if not published.kinds else self._open(path)
        if path is not None and self._writer is not None:
            self._reader = self._connect(path)  # so that reads do not wait while another thread syncs the disk

    def _open(self, path: Path | None) -> sqlite3.Connection:
        try:
            if path is not None:
                OpenedFile(path)  # for its owner alone
            db = self._connect(path)
            try:
                _prepare(db, self._where)
                if self._bytes_max is not None:
                    page = db.execute("PRAGMA page_size").fetchone()[0]
                    db.execute(f"PRAGMA max_page_count = {max(1, self._bytes_max // page)}")
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise LogOpenError(self._where, "a file of ids", str(error)) from error
        return db

    def _connect(self, path: Path | None) -> sqlite3.Connection:
        return sqlite3.connect(path or ":memory:", timeout=_BUSY_S, isolation_level=None, check_same_thread=False)

    def follow(self, published: PublishedIds) -> None:
        """Go on with the dictionaries of another run, which are of the same kinds."""
        self.former, self.published = self.published, published

    def find(self, kind: str, text: str) -> int | None:
        """Return the code of a text of `kind`; None for a text that neither the run nor the file knows.

        Raises `LogOpenError`.
        """
        code = self.published.code(kind, text)
        if code is None:
            with self._reading() as db:
                code = self._grown(db, kind, text)
        return code

    def code(self, kind: str, text: str) -> int:
        """Return the code of a text of `kind`: its own or, for an unknown text, the one that it would get now. Writes nothing.

        Raises `LogOpenError`.
        """
        code = self.published.code(kind, text)
        if code is None:
            with self._reading() as db:
                code = self._grown(db, kind, text)
                return self._free(db, kind, text) if code is None else code
        return code

    def texts(self, kind: str, codes: NDArray[np.int64]) -> list[str]:
        """Return the texts of codes [n], of the run, of the run before it, or of the file. Raises `LogOpenError`, and KeyError
        for a code that nobody knows."""
        for ids in (self.published, self.former):
            try:
                return ids.texts(kind, codes)
            except KeyError:
                pass
        return [self._text_of(kind, code) for code in codes.tolist()]

    def _text_of(self, kind: str, code: int) -> str:
        for ids in (self.published, self.former):
            if (text := ids.text(kind, code)) is not None:
                return text
        with self._reading() as db:
            row = db.execute(_TEXT, (kind, code)).fetchone()
        if row is None:
            raise KeyError(code)
        return str(row[0])

    def remember(self, texts: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Return the codes of texts, each with its kind. They are durable when this returns.

        All or none of the new ones are written. Raises `FeedbackLogError`.
        """
        codes = {one: self.find(*one) for one in texts}
        if None in codes.values():
            with self._writing() as db:
                for (kind, text), code in codes.items():
                    if code is None and (code := self._grown(db, kind, text)) is None:  # nor has another process added it
                        code = self._free(db, kind, text)
                        db.execute(_PUT, (kind, text, code))
                    codes[kind, text] = code
        return cast(dict[tuple[str, str], int], codes)

    def forget(self, kind: str, text: str) -> None:
        """Delete a text from the file. What the run has published remains. Raises `LogWriteError`."""
        if self._writer is not None:
            with self._writing() as db:
                db.execute(_DELETE, (kind, text))
            with self._write_lock:
                overwrite_deleted(self._writer, _BUSY_S, _RETRY_S)

    def grown(self) -> list[tuple[str, str, int]]:
        """Return kind, text and code of all that the file holds. Raises `LogOpenError`."""
        if self._reader is None:
            return []
        with self._reading() as db:
            return db.execute("SELECT kind, text, code FROM id ORDER BY kind, text").fetchall()

    def _grown(self, db: sqlite3.Connection, kind: str, text: str) -> int | None:
        """Return the code of a text in the file; None for an unknown text, and for a code that the run gave to another one."""
        row = db.execute(_CODE, (kind, text)).fetchone()
        return None if row is None or self.published.text(kind, row[0]) is not None else row[0]

    def _free(self, db: sqlite3.Connection, kind: str, text: str) -> int:
        """Return the first code for an unknown text that nobody holds."""
        for code in code_choices(text, self.published.bits):
            if self.published.text(kind, code) is None and db.execute(_TEXT, (kind, code)).fetchone() is None:
                return code
        raise AssertionError  # the choices have no end

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        # The one connection of a dictionary in memory is also the writer's.
        lock = self._write_lock if self._reader is self._writer else self._read_lock
        with lock:
            if self._reader is None:
                raise LogOpenError(self._where, "an open file of ids", "a closed one")
            try:
                yield self._reader
            except sqlite3.Error as error:
                raise LogOpenError(self._where, "a file of ids that can be read", str(error)) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, which is committed at the end of the block and undone after an error."""
        with self._write_lock:
            if (db := self._writer) is None:
                raise LogWriteError(self._where, "an open file of ids", "a closed one")
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except sqlite3.Error as error:
                if is_busy(error):
                    raise LogBusyError(self._where, f"a turn to write within {_BUSY_S:g} s", str(error)) from error
                raise LogWriteError(self._where, "room for new ids", str(error)) from error
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._write_lock, self._read_lock:
            for db in (self._reader, self._writer):
                if db is not None:
                    db.close()
            self._reader = self._writer = None


def _prepare(db: sqlite3.Connection, where: str) -> None:
    """Make the table in an empty file. Raises `LogOpenError` for a file of another program or version, and sqlite3.Error."""
    db.execute("BEGIN")  # one consistent view: another process may be making the file
    is_empty = _check(db, where)  # before anything is changed in a file that is none of ours
    db.execute("COMMIT")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")  # ids of forgotten users are overwritten
    retry_busy(db, lambda: db.execute("PRAGMA journal_mode = WAL"), _BUSY_S, _RETRY_S)
    if not is_empty:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if _check(db, where):
            db.execute(_TABLE)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _check(db: sqlite3.Connection, where: str) -> bool:
    """Return whether the file is empty. Raises `LogOpenError` for a file of another program or version."""
    found = tuple(db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if found == (0, 0) and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        return True
    if found != (_APPLICATION_ID, _FORMAT):
        raise LogOpenError(where, f"a file of ids of format {_FORMAT}", f"a database of kind {found[0]}, format {found[1]}")
    return False
