"""What the stores of this machine share: tables by version, grown and dropped under the eyes of readers."""

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
    """Tables in memory that a subclass provides. `clock` tells Unix time in seconds."""

    def __init__(self, where: str, config: TableConfig | None, clock: Callable[[], float]) -> None:
        self._where, self._config, self._clock = where, config or TableConfig(), clock
        self._tables: dict[str, Table] = {}
        self._lock = RLock()  # of writers; a reader takes it only to find a table that it has not seen yet

    @abstractmethod
    def _write(self) -> None:
        """Make sure that this process may write. Raises `StoreWriteError`."""

    @abstractmethod
    def _names(self) -> list[str]:
        """Versions that may have a table."""

    @abstractmethod
    def _find(self, version: str) -> Table | None:
        """The table of a version that is not among `_tables`, or whose table there is over."""

    @abstractmethod
    def _make(self, version: str, layout: Layout, expires_s: float, old: Table | None) -> Table:
        """A new table of `version` with the rows of `old`, for readers from now on. Raises `StoreWriteError`."""

    @abstractmethod
    def _remove(self, version: str) -> None:
        """Forget what there is of a version."""

    def _current(self, version: str) -> Table | None:
        """The version's table, whether its life is over or not."""
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
        """Make or keep the table of a version; its life starts anew. Raises `StoreInputError` and `StoreWriteError`."""
        checked_table(self._where, version, width)
        with self._lock:
            self._write()
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
        """What opens; what is damaged is told by `get` and removed by `drop`."""
        for version in self._names():
            with suppress(StoreError):
                if (table := self._current(version)) is not None:
                    yield version, table

    def versions(self) -> dict[str, TableInfo]:
        """The tables of all versions whose life is not over; one that is damaged is not among them."""
        now = self._clock()
        return {version: table.info for version, table in self._all() if table.expires_s > now}

    def get(self, version: str, ids: NDArray[np.int64], *, deadline_s: float | None = None) -> StoredRows:
        """The rows of `ids`; no deadline is ever missed. Raises `UnknownVersionError`."""
        return self._table(version).get(as_ids(self._where, ids))

    def put(self, version: str, ids: NDArray[np.int64], vectors: NDArray[np.floating]) -> None:
        """Keep rows; when the table has no room for all of them, none is kept. Raises as the seam says."""
        with self._lock:
            self._write()
            table = self._table(version)
            keys, rows = as_rows(self._where, ids, vectors, table.layout.width)
            if not table.room(keys):
                wanted = max(round(self._config.growth * table.info.rows), table.info.rows + len(keys))
                layout = Layout.for_rows(table.layout.width, wanted, self._config)
                larger = self._make(version, layout, table.expires_s, table)
                self._tables[version] = larger
                table.end()
                self._outdated(version)
                table = larger
            table.put(keys, rows)

    def _outdated(self, version: str) -> None:
        """Clear away tables that a larger one has replaced."""

    def delete(self, version: str, ids: NDArray[np.int64]) -> None:
        """Forget rows. Raises `UnknownVersionError` and `StoreWriteError`."""
        with self._lock:
            self._write()
            self._table(version).delete(np.unique(as_ids(self._where, ids)))

    def drop(self, version: str) -> None:
        """Forget a version. Raises `StoreWriteError`."""
        with self._lock:
            self._write()
            with suppress(StoreError):  # damaged: all the more reason
                if (table := self._current(version)) is not None:
                    table.end()
            self._tables.pop(version, None)
            self._remove(version)

    def scan(self, version: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """All rows in chunks. Raises `UnknownVersionError` at once."""
        return self._table(version).scan()

    def close(self) -> None:
        """Forget all tables."""
        with self._lock:
            self._tables.clear()
