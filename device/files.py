"""Files that a power cut leaves either as they were or as they were meant to be."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["TEMPORARY", "sync", "write_atomically"]

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
