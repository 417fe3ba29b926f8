"""The exact index: scores every row that a filter lets through, with BLAS."""

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
    """Exact search, in time that grows with the number of items. Of equal scores the smaller id comes first."""

    def __init__(self, *, masks_max: int = _MASKS_MAX) -> None:
        """`masks_max` is the number of filters whose masks are kept, at 1 to 9 bytes per item each."""
        self._rows, self._lock, self._closed = IndexRows(masks_max), ReadWriteLock(), False

    @classmethod
    def over(cls, vectors: NDArray[np.floating], attributes: Attributes | None = None) -> ExactIndex:
        """Make an index over `vectors` [n, D], whose ids are their positions."""
        index = cls()
        index.upsert(np.arange(len(vectors)), vectors, attributes or Attributes.unknown(len(vectors)))
        return index

    def upsert(self, ids: NDArray[np.int64], vectors: NDArray[np.floating], attributes: Attributes) -> None:
        """See `VectorIndex.upsert`."""
        rows = checked_rows(ids, vectors, attributes, self._rows.width)
        with self._lock.write():
            self._open()
            self._rows.reserve(rows[0], rows[1].shape[1])
        for part in parts(*rows):
            with self._lock.write():
                self._open()
                self._rows.upsert(*part)

    def delete(self, ids: NDArray[np.int64]) -> None:
        """See `VectorIndex.delete`."""
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
        """See `VectorIndex.search`. The result is exact."""
        with self._lock.read():
            self._open()
            query = checked_query(query, self._rows.width)
            slots = self._rows.slots_of(np.asarray(exclude, np.int64))
            return self._rows.exact(query, k, self._rows.mask(where), slots[slots >= 0])

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Free the rows."""
        with self._lock.write():
            self._closed = True
            self._rows = IndexRows(1)

    def _open(self) -> None:
        if self._closed:
            raise_closed("the exact index")
