"""Table of rows in one piece of memory, which one process writes and several may read: header, id index, rows.

::

    header   4096 bytes: int64 fields, magic, width, P, R, grace, state, rows freed so far, live rows, expiry (float64)
    entries  int64 [P, 16]     `pocketrank.cloud.stores.ids`
    rows     float16 [R, D]    row 0 is zeros and stands for every unknown id

An update writes a free row and then changes the id's position in the index to it, which frees the old row. Free rows are reused
in the order in which they were freed, and each only after `grace_rows` later ones were freed. The header counts freed rows. If
the count has risen by at most `grace_rows` while a reader read, no row that it read was written meanwhile; otherwise it reads
again. A writer killed at any moment leaves whole rows: no position refers to a row that it had not finished.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.stores.base import StoredRows, StoreError, TableInfo
from pocketrank.cloud.stores.ids import BUCKET, IdIndex, buckets_for

__all__ = ["Layout", "Table", "TableConfig"]

Int = NDArray[np.int64]
Half = NDArray[np.float16]

_MAGIC = int.from_bytes(b"PRtable1", "little")
_HEADER = 4096
_FIELD_MAGIC, _FIELD_WIDTH, _FIELD_BUCKETS, _FIELD_ROWS, _FIELD_GRACE = range(5)
_FIELD_STATE, _FIELD_FREED, _FIELD_LIVE, _FIELD_EXPIRES = range(5, 9)
_LIVE, _OVER = 0, 1


@dataclass(frozen=True)
class TableConfig:
    """Room of a table, and the delay until a freed row is reused."""

    grace_rows: int = 4096
    """Rows that must be freed after a row before it is reused. A reader has to read a batch again only if so many rows are
    freed meanwhile, which takes a reader that is suspended in the middle."""
    chunk_rows: int = 1024
    """Rows that are written or read between two readings of the counter."""
    growth: float = 1.5
    """Rows of the next table relative to those of the full table that it replaces."""
    rows_min: int = 256
    """Smallest number of rows of a table, not counting those for the grace."""

    def __post_init__(self) -> None:
        if not (self.chunk_rows > 0 and self.grace_rows >= self.chunk_rows and self.growth > 1 and self.rows_min > 0):
            raise ValueError(f"Expected grace_rows >= chunk_rows > 0, growth > 1 and rows_min > 0, got {self}")


class Layout(NamedTuple):
    """Shape of a table, and the places of its parts."""

    width: int
    buckets: int
    rows: int
    grace: int

    @classmethod
    def for_rows(cls, width: int, rows: int, config: TableConfig) -> Layout:
        """Return the layout with room for so many live rows, and for the freed rows that are not reused yet."""
        room = max(rows, config.rows_min)
        return cls(width, buckets_for(room), 1 + room + config.grace_rows + config.chunk_rows, config.grace_rows)

    @property
    def rows_at(self) -> int:
        """Offset of the rows in bytes."""
        return _HEADER + self.buckets * 2 * BUCKET * 8

    @property
    def bytes(self) -> int:
        """Size of the table in bytes."""
        return self.rows_at + self.rows * self.width * 2


class Table:
    """Table in `memory`. There is one writer, which calls `recover` first unless the table is new; readers need no lock.

    With `fresh` the memory becomes a new table; without it, the table in the memory is opened. Raises `StoreError` for memory
    without a table.
    """

    def __init__(self, memory: mmap.mmap, where: str, config: TableConfig, fresh: Layout | None = None) -> None:
        self._where, self._config = where, config
        self._fields = memoryview(memory)[:_HEADER].cast("q")
        self._times = memoryview(memory)[:_HEADER].cast("d")
        layout = fresh or self._read_layout(len(memory))
        self.layout = layout
        entries = np.frombuffer(memory, np.int64, layout.buckets * 2 * BUCKET, _HEADER)
        self._index = IdIndex(entries.reshape(layout.buckets, 2 * BUCKET), fresh=fresh is not None)
        self._rows = np.frombuffer(memory, np.float16, layout.rows * layout.width, layout.rows_at).reshape(-1, layout.width)
        self._free: deque[Int] = deque()  # rows, in the order in which they were freed
        self._free_rows, self._next, self._known = 0, 1, 0
        if fresh is not None:
            fields = (layout.width, layout.buckets, layout.rows, layout.grace, _LIVE, 0, 0)
            for field, value in enumerate(fields, _FIELD_WIDTH):
                self._fields[field] = value
            self._times[_FIELD_EXPIRES] = inf
            self._fields[_FIELD_MAGIC] = _MAGIC

    def _read_layout(self, size: int) -> Layout:
        fields = self._fields
        layout = Layout(fields[_FIELD_WIDTH], fields[_FIELD_BUCKETS], fields[_FIELD_ROWS], fields[_FIELD_GRACE])
        if fields[_FIELD_MAGIC] != _MAGIC or min(layout) < 1 or layout.bytes != size:
            raise StoreError(self._where, "a table of embeddings", f"{size} bytes of something else")
        return layout

    @property
    def is_over(self) -> bool:
        """Whether another table has replaced this one, or the version was dropped."""
        return self._fields[_FIELD_STATE] != _LIVE

    def end(self) -> None:
        """Let readers look for another table."""
        self._fields[_FIELD_STATE] = _OVER

    @property
    def expires_s(self) -> float:
        """Unix time in seconds at which the table expires; infinity: never."""
        return self._times[_FIELD_EXPIRES]

    @expires_s.setter
    def expires_s(self, value: float) -> None:
        self._times[_FIELD_EXPIRES] = value

    @property
    def info(self) -> TableInfo:
        """Width, rows and expiry."""
        expires_s = self.expires_s
        return TableInfo(self.layout.width, self._fields[_FIELD_LIVE], None if expires_s == inf else expires_s)

    def get(self, ids: Int) -> StoredRows:
        """Return the rows of `ids` [n]."""
        if len(ids) <= self._config.chunk_rows:
            fields, grace = self._fields, self.layout.grace
            while True:
                freed = fields[_FIELD_FREED]
                positions = self._index(ids)
                vectors = self._rows.take(positions, axis=0)
                if fields[_FIELD_FREED] - freed <= grace:
                    return StoredRows(vectors, positions.astype(np.bool_))
        parts = [self.get(ids[i : i + self._config.chunk_rows]) for i in range(0, len(ids), self._config.chunk_rows)]
        return StoredRows(np.concatenate([p.vectors for p in parts]), np.concatenate([p.found for p in parts]))

    def scan(self) -> Iterator[tuple[Int, Half]]:
        """Yield all rows, some hundreds at a time."""
        step = max(1, self._config.chunk_rows // BUCKET)
        for start in range(0, len(self._index), step):
            ids, _ = self._index.items(start, step)
            rows = self.get(ids)
            if len(ids) and rows.found.any():
                yield ids[rows.found], rows.vectors[rows.found]

    def recover(self) -> None:
        """Find the free rows, as the new writer. Readers of rows of the former writer will read again."""
        self._fields[_FIELD_FREED] += self.layout.grace + 1
        positions = self._index.items(0, len(self._index))[1]
        if positions.max(initial=0) >= self.layout.rows:
            raise StoreError(self._where, f"positions below {self.layout.rows}", str(positions.max()))
        used = np.zeros(self.layout.rows, np.bool_)
        used[0] = True
        used[positions] = True
        self._next = int(positions.max(initial=0)) + 1
        self._free, self._free_rows = deque(), 0
        self._free_up(np.flatnonzero(~used[: self._next]))
        self._known = self._index.taken()
        self._fields[_FIELD_LIVE] = len(positions)

    def room(self, ids: Int) -> bool:
        """Return whether the table has room for rows of `ids` [n], without repeats."""
        slots = self._index.slots(ids)
        new = int((slots < 0).sum())
        more = len(ids) - int((self._index.at(slots[slots >= 0]) > 0).sum())
        spare = self.layout.rows - self._next + self._free_rows - self.layout.grace
        # Replaced rows need room for one chunk at a time, as each chunk frees as many rows.
        return self._known + new <= self._index.room and more + min(len(ids), self._config.chunk_rows) <= spare

    def put(self, ids: Int, vectors: Half) -> None:
        """Write the rows of `ids` [n], for which there is `room`."""
        for start in range(0, len(ids), self._config.chunk_rows):
            part = slice(start, start + self._config.chunk_rows)
            self._put(ids[part], vectors[part])

    def _put(self, ids: Int, vectors: Half) -> None:
        slots = self._index.slots(ids)
        rows = self._take(len(ids))
        self._rows[rows] = vectors
        known = slots >= 0
        old = self._index.at(slots[known])
        self._index.set(slots[known], rows[known])
        self._index.insert(ids[~known], rows[~known])
        old = old[old > 0]
        self._free_up(old)
        self._known += int((~known).sum())
        self._fields[_FIELD_LIVE] += len(ids) - len(old)

    def copy(self, old: Table) -> None:
        """Copy the rows of another table into this one, which is empty and has room for them."""
        for ids, vectors in old.scan():
            self.put(ids, vectors)

    def delete(self, ids: Int) -> None:
        """Delete the rows of `ids` [n], without repeats."""
        slots = self._index.slots(ids)
        slots = slots[slots >= 0]
        old = self._index.at(slots)
        self._index.set(slots, 0)
        old = old[old > 0]
        self._free_up(old)
        self._fields[_FIELD_LIVE] -= len(old)

    def _free_up(self, rows: Int) -> None:
        if len(rows):
            self._free.append(rows)
            self._free_rows += len(rows)
            self._fields[_FIELD_FREED] += len(rows)

    def _take(self, count: int) -> Int:
        fresh = min(count, self.layout.rows - self._next)
        if self._free_rows - count >= self.layout.grace:
            fresh = 0  # reused rows are in the cache, and the memory that is in use does not grow
        taken = [np.arange(self._next, self._next + fresh)]
        self._next += fresh
        if wanted := count - fresh:
            self._free_rows -= wanted
            while wanted:
                part = self._free.popleft()
                if len(part) > wanted:
                    self._free.appendleft(part[wanted:])
                taken.append(part[:wanted])
                wanted -= len(taken[-1])
        return np.concatenate(taken)
