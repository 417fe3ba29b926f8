"""Files that a power cut leaves either as they were or as they were meant to be, and locks between processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["TEMPORARY", "Lock", "sync", "write_atomically"]

TEMPORARY = ".tmp"
"""The suffix of a file that is being written. One that a killed process left behind may be removed."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: after a power cut the file is either what it was or all of `data`. Raises OSError."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    # The rename is atomic; only the sync of the folder makes it durable.
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk, so that they survive a power cut. Raises OSError."""
    if os.name == "posix":  # other systems cannot open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Lock:
    """Lock between processes: the file at `path`, made if need be and locked until `close`, collection, or the process's end.

    A child that is forked meanwhile holds the lock too. Raises BlockingIOError while the lock is held, here or in another
    process, and OSError for a file that cannot be made.
    """

    def __init__(self, path: Path) -> None:
        # Reading is enough for a lock where the disk became read-only; only Windows needs more.
        mode = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
        self._file = os.open(path, mode | os.O_CREAT, 0o600)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            self.close()
            if isinstance(err, PermissionError):  # how Windows says that it is held
                raise BlockingIOError(err.errno, err.strerror) from err
            raise

    def close(self) -> None:
        """Release the lock. The file stays: one that is removed may be locked twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()
