"""An SQLite file in write-ahead mode that several processes have open: turns of writers, and a check that it is still there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic, sleep, time_ns

__all__ = ["OpenedFile", "code_of", "is_busy", "open_state", "overwrite_deleted", "retry_busy"]

_OWNER_ONLY = 0o600
_FOLDER_TIME_NS = 100_000_000
"""More than the steps of a file system's clock, in nanoseconds."""
_FILES = ("", "-wal", "-shm")

_random = Random()


class OpenedFile:
    """The file at `path` with its neighbours, made for its owner alone where it is missing. Raises OSError."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.real = os.path.realpath(path)
        """Path beside which the neighbours stand."""
        with suppress(FileExistsError):  # closing a file that is open elsewhere in this process would drop its locks
            os.close(os.open(self.real, os.O_RDWR | os.O_CREAT | os.O_EXCL, _OWNER_ONLY))  # its neighbours get the same mode
        self._folder, self._is_direct = os.path.dirname(self.real), os.path.abspath(path) == self.real
        self.files = [os.path.abspath(path), *(self.real + name for name in _FILES[1:])]
        self._checked: tuple[int, int, int] | None = None
        """The folder when the files were last found in place."""
        self._opened: list[tuple[int, int]] = []

    def opened(self) -> None:
        """Take the files as they are now for the right ones. Raises OSError."""
        self._opened = self._identify()

    def _identify(self) -> list[tuple[int, int]]:
        return [(found.st_dev, found.st_ino) for found in map(os.stat, self.files)]

    def missing(self) -> str:
        """Return why a file is not the one that was opened; empty where all are. Takes microseconds.

        No file is made, moved or removed without a change of the folder's time, which has steps of some milliseconds. So files
        that were looked at later than that are the same while the folder is.
        """
        try:
            folder = os.stat(self._folder)
            here = folder.st_dev, folder.st_ino, folder.st_mtime_ns
            if here == self._checked:
                return ""
            now = time_ns()
            found = self._identify()
            if found == self._opened and self._is_direct and folder.st_mtime_ns < now - _FOLDER_TIME_NS:
                self._checked = here
        except OSError as error:
            return f"`{os.path.basename(error.filename)}`: {error.strerror}"  # not its folder, which a client might read
        return "" if found == self._opened else "another file under its name"


def retry_busy(db: sqlite3.Connection, work: Callable[[], object], busy_s: float, retry_s: float) -> None:
    """Do `work`, and repeat it for up to `busy_s` while the file is locked, with a pause of `retry_s` in the mean.

    SQLite itself does not wait to change the journal mode, and its pauses between attempts to become the writer grow to 100 ms.
    """
    until = monotonic() + busy_s
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if not is_busy(error) or monotonic() >= until:
                raise
        # A random pause, so that two waiting processes do not always try at the same time.
        sleep(_random.uniform(0, 2 * retry_s))


def overwrite_deleted(db: sqlite3.Connection, busy_s: float, retry_s: float) -> None:
    """Empty the write-ahead file, which may hold what was deleted. A reader that is busy for longer than `busy_s` keeps it from
    that until its next use."""
    until = monotonic() + busy_s
    with suppress(sqlite3.Error):
        while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] and monotonic() < until:
            sleep(retry_s)


def open_state(path: Path | None, busy_s: float = 5.0) -> sqlite3.Connection:
    """Open a file with what one process knows, made for its owner alone; without a `path` it is in memory.

    Transactions outlive a killed process, deleted rows are overwritten, and another process has `busy_s` seconds to let go.
    Raises sqlite3.Error, OSError.
    """
    if path is not None:
        OpenedFile(path)
    db = sqlite3.connect(path or ":memory:", timeout=busy_s, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
            db.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def code_of(error: BaseException) -> int:
    """Return SQLite's code of an error; 0 for another error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: BaseException) -> bool:
    """Return whether others held the file for too long."""
    return code_of(error) == sqlite3.SQLITE_BUSY
