"""Embedding tables in memory-mapped files: one process writes them, any number read them, and all share the memory.

::

    FOLDER/writer.lock             locked by the process that writes
    FOLDER/v-VERSION/00000001.rows table, see `pocketrank.cloud.stores.table`; that of the highest number counts

A full table is copied into a larger one, which takes the next number and is renamed into place when it is whole. Then the old
table is marked, so that readers look for the new one, and removed. A writer killed at any moment leaves a folder that opens,
with each row whole. A machine that loses its power may leave anything: remove the folder, and the next server that starts fills
it again from the run (`pocketrank.cloud.stores.filling`).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pocketrank.cloud.files import replacing
from pocketrank.cloud.stores.base import StoreConfigError, StoreError, StoreWriteError, is_version
from pocketrank.cloud.stores.table import Layout, Table, TableConfig
from pocketrank.cloud.stores.tables import TableStore

__all__ = ["MappedStore"]

_PREFIX, _SUFFIX = "v-", ".rows"

_TRIES = 100
"""Attempts of a reader to open a table while the writer replaces it; with each replacement it is larger by half."""


class MappedStore(TableStore):
    """Tables in the files of `folder`, which is made if missing. `clock` returns Unix time in seconds.

    The first call that writes makes this process the writer, until `close` or the end of the process. It raises
    `StoreWriteError` while another process is the writer. Raises `StoreConfigError` for a folder that cannot be made.
    """

    def __init__(self, folder: Path, config: TableConfig | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__(f"mmap:{folder}", config, clock)
        self._folder, self._lock_file, self._pid = folder, -1, os.getpid()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreConfigError(self._where, "a folder for tables", str(error)) from error

    @property
    def _is_writer(self) -> bool:
        return self._lock_file >= 0 and self._pid == os.getpid()

    def _become_writer(self) -> None:
        if self._is_writer:
            return
        self._unlock()  # a fork inherits the lock file of its parent, and is not the writer
        descriptor = -1
        try:
            descriptor = os.open(self._folder / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            got = "another process that writes" if isinstance(error, BlockingIOError) else str(error)
            raise StoreWriteError(self._where, "to be the only writer", got) from error
        self._lock_file, self._pid = descriptor, os.getpid()
        self._tables.clear()  # they are mapped for reading only
        for version in self._names():
            self._clear(version)

    def _path(self, version: str) -> Path:
        return self._folder / f"{_PREFIX}{version}"

    def _names(self) -> list[str]:
        found = (path.name.removeprefix(_PREFIX) for path in self._folder.glob(f"{_PREFIX}*"))
        return sorted(filter(is_version, found))

    def _numbers(self, version: str) -> list[int]:
        """Return the numbers of the version's tables, the current one last."""
        return sorted(int(path.stem) for path in self._path(version).glob(f"*{_SUFFIX}") if path.stem.isdecimal())

    def _file(self, version: str, number: int) -> Path:
        return self._path(version) / f"{number:08d}{_SUFFIX}"

    def _clear(self, version: str) -> None:
        """Remove what a killed writer left: unfinished tables, and tables that were replaced."""
        for unfinished in self._path(version).glob("*.part"):
            unfinished.unlink(missing_ok=True)
        for number in self._numbers(version)[:-1]:
            self._retire(version, number)

    def _retire(self, version: str, number: int) -> None:
        with suppress(StoreError, OSError):  # a table that cannot be opened has no readers
            self._open(self._file(version, number), writable=True).end()
        self._file(version, number).unlink(missing_ok=True)

    def _find(self, version: str) -> Table | None:
        if not is_version(version):
            return None
        writer = self._is_writer
        for _ in range(_TRIES):
            numbers = self._numbers(version)
            if not numbers:
                return None
            try:
                table = self._open(self._file(version, numbers[-1]), writable=writer)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreError(self._where, f"a table of {version!r}", str(error)) from error
            if table.is_over:
                if writer:  # a killed writer had begun to drop the version
                    shutil.rmtree(self._path(version), ignore_errors=True)
                    return None
                continue
            if writer:
                table.recover()
            return table
        return None

    def _open(self, path: Path, *, writable: bool) -> Table:
        with path.open("r+b" if writable else "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise StoreError(str(path), "a table of embeddings", "an empty file")
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        return Table(memory, str(path), self._config)

    def _make(self, version: str, layout: Layout, expires_s: float, old: Table | None) -> Table:
        folder = self._path(version)
        number = max(self._numbers(version), default=0) + 1
        path = self._file(version, number)
        try:
            folder.mkdir(exist_ok=True)
            # Not synced: later rows are written to the memory map without syncing too.
            with replacing(path, sync=False) as part:
                with part.open("r+b") as file:
                    # Allocated now: if the disk were full at a later write, the process would be killed in the middle of a row.
                    os.posix_fallocate(file.fileno(), 0, layout.bytes)
                    memory = mmap.mmap(file.fileno(), layout.bytes, access=mmap.ACCESS_WRITE)
                table = Table(memory, str(path), self._config, layout)
                table.expires_s = expires_s
                if old is not None:
                    table.copy(old)
        except (OSError, OverflowError) as error:
            raise StoreWriteError(self._where, f"room for a table of {layout.bytes} bytes", str(error)) from error
        return table

    def _remove_replaced(self, version: str) -> None:
        for number in self._numbers(version)[:-1]:
            self._file(version, number).unlink(missing_ok=True)

    def _remove(self, version: str) -> None:
        if is_version(version):
            shutil.rmtree(self._path(version), ignore_errors=True)

    def close(self) -> None:
        """Close all tables, and let another process become the writer."""
        with self._lock:
            super().close()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1
