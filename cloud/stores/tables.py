"""Base class of the stores of one machine: tables by version, which grow and are dropped while others read them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.stores.base import (
    EmbeddingStore,
    StoredRows,
    StoreError,
    StoreInputError,
    TableInfo,
    UnknownVersionError,
    as_ids,
    as_rows,
    checked_table,
)
from pocketrank.cloud.stores.table import Layout, Table, TableConfig

__all__ = ["TableStore"]


class TableStore(EmbeddingStore):
    """Tables in memory that a subclass provides. `clock` returns Unix time in seconds."""

    def __init__(self, where: str, config: TableConfig | None, clock: Callable[[], float]) -> None:
        self._where, self._config, self._clock = where, config or TableConfig(), clock
        self._tables: dict[str, Table] = {}
        self._lock = RLock()  # for writers; a reader takes it only to open a table

    @abstractmethod
    def _become_writer(self) -> None:
        """Make this process the writer, unless it is. Raises `StoreWriteError`."""

    @abstractmethod
    def _names(self) -> list[str]:
        """Return the versions that may have a table."""

    @abstractmethod
    def _find(self, version: str) -> Table | None:
        """Open the current table of a version, or return None if there is none."""

    @abstractmethod
    def _make(self, version: str, layout: Layout, expires_s: float, old: Table | None) -> Table:
        """Make a new table of `version` with the rows of `old`, which readers find from now on. Raises `StoreWriteError`."""

    @abstractmethod
    def _remove(self, version: str) -> None:
        """Remove everything of a version."""

    def _current(self, version: str) -> Table | None:
        """Return the version's table, even if it has expired."""
        table = self._tables.get(version)
        if table is None or table.is_over:
            with self._lock:
                table = self._tables.get(version)
                if table is None or table.is_over:
                    self._tables.pop(version, None)
                    table = self._find(version)
                    if table is not None:
                        self._tables[version] = table
        return table

    def _table(self, version: str) -> Table:
        table = self._current(version)
        if table is None or table.expires_s <= self._clock():
            raise self._unknown(version)
        return table

    def _unknown(self, version: str) -> UnknownVersionError:
        return UnknownVersionError(self._where, "a version with a table", repr(version[:200]))

    def create(self, version: str, width: int, *, ttl_s: float | None = None) -> None:
        """Create the table of a version, or keep it with the new expiry. Raises `StoreInputError` and `StoreWriteError`."""
        checked_table(self._where, version, width)
        with self._lock:
            self._become_writer()
            self._purge()
            table, expires_s = self._current(version), inf if ttl_s is None else self._clock() + ttl_s
            if table is None:
                self._tables[version] = self._make(version, Layout.for_rows(width, 0, self._config), expires_s, None)
            elif table.layout.width != width:
                raise StoreInputError(self._where, f"{version!r} with its width {table.layout.width}", str(width))
            else:
                table.expires_s = expires_s

    def _purge(self) -> None:
        for version, table in self._all():
            if table.expires_s <= self._clock():
                self.drop(version)

    def _all(self) -> Iterator[tuple[str, Table]]:
        """Yield the tables that can be opened. For a damaged one `get` raises an error, and `drop` removes it."""
        for version in self._names():
            with suppress(StoreError):
                if (table := self._current(version)) is not None:
                    yield version, table

    def versions(self) -> dict[str, TableInfo]:
        """Return the tables of all versions that have not expired, without damaged ones."""
        now = self._clock()
        return {version: table.info for version, table in self._all() if table.expires_s > now}

    def get(self, version: str, ids: NDArray[np.int64], *, deadline_s: float | None = None) -> StoredRows:
        """Return the rows of `ids`; `deadline_s` has no effect. Raises `UnknownVersionError`."""
        return self._table(version).get(as_ids(self._where, ids))

    def put(self, version: str, ids: NDArray[np.int64], vectors: NDArray[np.floating]) -> None:
        """Write all rows, or none if there is no room for all of them. Raises as `EmbeddingStore.put` does."""
        with self._lock:
            self._become_writer()
            table = self._table(version)
            keys, rows = as_rows(self._where, ids, vectors, table.layout.width)
            if not table.room(keys):
                # Readers find the larger table once the old one is ended.
                wanted = max(round(self._config.growth * table.info.rows), table.info.rows + len(keys))
                layout = Layout.for_rows(table.layout.width, wanted, self._config)
                larger = self._make(version, layout, table.expires_s, table)
                self._tables[version] = larger
                table.end()
                self._remove_replaced(version)
                table = larger
            table.put(keys, rows)

    def _remove_replaced(self, version: str) -> None:
        """Remove the tables that a larger one has replaced."""

    def delete(self, version: str, ids: NDArray[np.int64]) -> None:
        """Delete rows. Raises `UnknownVersionError` and `StoreWriteError`."""
        with self._lock:
            self._become_writer()
            self._table(version).delete(np.unique(as_ids(self._where, ids)))

    def drop(self, version: str) -> None:
        """Drop a version. Raises `StoreWriteError`."""
        with self._lock:
            self._become_writer()
            with suppress(StoreError):  # a damaged table is dropped too
                if (table := self._current(version)) is not None:
                    table.end()
            self._tables.pop(version, None)
            self._remove(version)

    def scan(self, version: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Yield all rows in chunks. Raises `UnknownVersionError`, before the first chunk."""
        return self._table(version).scan()

    def close(self) -> None:
        """Close all tables."""
        with self._lock:
            self._tables.clear()
