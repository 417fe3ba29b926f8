"""The exact index: scores every row that may come back, by BLAS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.vectors.index import (
    ANY,
    NONE,
    AttributeFilter,
    Attributes,
    Found,
    VectorIndex,
    checked_query,
    checked_rows,
    raise_closed,
)
from pocketrank.cloud.vectors.locks import ReadWriteLock
from pocketrank.cloud.vectors.rows import IndexRows, parts

__all__ = ["ExactIndex"]

_MASKS_MAX = 64


class ExactIndex(VectorIndex):
    """The right answer, in time that grows with the number of items; an equal score goes to the smaller id."""

    def __init__(self, *, masks_max: int = _MASKS_MAX) -> None:
        """The answers of so many filters are kept, at 1 to 9 bytes an item each."""
        self._rows, self._lock, self._closed = IndexRows(masks_max), ReadWriteLock(), False

    @classmethod
    def over(cls, vectors: NDArray[np.floating], attributes: Attributes | None = None) -> ExactIndex:
        """Over `vectors` [n, D], whose ids are their positions."""
        index = cls()
        index.upsert(np.arange(len(vectors)), vectors, attributes or Attributes.unknown(len(vectors)))
        return index

    def upsert(self, ids: NDArray[np.int64], vectors: NDArray[np.floating], attributes: Attributes) -> None:
        """As `VectorIndex.upsert`."""
        rows = checked_rows(ids, vectors, attributes, self._rows.width)
        with self._lock.write():
            self._open()
            self._rows.reserve(rows[0], rows[1].shape[1])
        for part in parts(*rows):
            with self._lock.write():
                self._open()
                self._rows.upsert(*part)

    def delete(self, ids: NDArray[np.int64]) -> None:
        """As `VectorIndex.delete`."""
        with self._lock.write():
            self._open()
            self._rows.delete(np.asarray(ids, np.int64))

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        where: AttributeFilter = ANY,
        exclude: NDArray[np.int64] = NONE,
        deadline_s: float | None = None,
    ) -> Found:
        """As `VectorIndex.search`, the exact answer."""
        with self._lock.read():
            self._open()
            query = checked_query(query, self._rows.width)
            slots = self._rows.slots_of(np.asarray(exclude, np.int64))
            return self._rows.exact(query, k, self._rows.mask(where), slots[slots >= 0])

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Forget the rows."""
        with self._lock.write():
            self._closed = True
            self._rows = IndexRows(1)

    def _open(self) -> None:
        if self._closed:
            raise_closed("the exact index")
