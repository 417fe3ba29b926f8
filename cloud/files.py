"""Writing of files that readers see whole: after a crash or a power cut a file is what it was, or all that was written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace_folder", "replacing", "sync_folder", "write_atomically"]


@contextmanager
def replacing(path: Path, mode: int = 0o644, *, sync: bool = True) -> Iterator[Path]:
    """Yield the path of a new file, which replaces `path` when the block ends without an error.

    The new file stands in the folder of `path`, is empty and has the permissions `mode`. After an error it is removed, and
    `path` is as it was. A process that is killed in the block leaves a file `*.part`. `sync=False` leaves it to the operating
    system when the bytes reach the disk: after a power cut the file may then hold anything. Raises OSError.
    """
    part = path.with_name(f"{path.name}.{os.urandom(8).hex()}.part")  # its own name for each of several writers
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield part
        if sync:
            # Before the rename: a file system may otherwise write the new name before the new bytes.
            _sync(part, os.O_RDWR)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if sync:
        sync_folder(path.parent)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` to `path`, with the permissions `mode`, as `replacing` does. Raises OSError."""
    with replacing(path, mode) as part:
        part.write_bytes(data)


def replace_folder(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`, which is removed if there is one.

    The bytes are on the disk before the name is. A process that is killed between the two renames leaves the old folder as
    `*.part`. Raises OSError.
    """
    for path in (new, *new.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            _sync(path, os.O_RDWR)
    old = folder.with_name(f"{folder.name}.{os.urandom(8).hex()}.part")
    replaced = folder.exists()
    if replaced:
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    if replaced:
        shutil.rmtree(old)


def sync_folder(folder: Path) -> None:
    """Let names that were made, changed or removed in `folder` survive a power cut. Raises OSError."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
