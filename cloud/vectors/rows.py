"""The rows of an in-process index: vectors and attributes in columns that grow, and masks of the rows that pass a filter.

A row keeps its slot until its id is deleted; free slots are used again. Nothing here locks: the index that owns the table makes
sure that nobody reads while it changes (`pocketrank.cloud.vectors.locks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.vectors.index import ANY, AttributeFilter, Attributes, Found, WidthError

__all__ = ["Mask", "IndexRows", "best", "parts"]

_PART = 512
"""Rows that are written in one turn while searches wait: 3 ms with inverted lists, which took 1.1 s for 200,000 x 64."""
_GROWTH = 1.5
_SLOTS_MIN = 1024
"""Slots of the smallest table. A multiple of 8, so that a mask is whole bytes."""
_DENSE_PER_SLOT = 8
"""Ids below this number times the slots are looked up in an array, at 4 bytes each. Others are looked up in a dict, which takes
ten times as long."""
_LOG_SHARE = 0.25
"""A mask that missed changes to a larger share of the slots is computed again as a whole."""
_GATHERED_SHARE_MAX = 0.15
"""Up to this share of the slots, the vectors that pass are gathered and scored; above it all vectors are scored. Of 200,000 x
64, gathering 20,000 took 1.1 ms and 100,000 took 12 ms; scoring all took 5 ms."""


def best(scores: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> Found:
    """Return the `k` best of `scores` [n]. Of equal scores the smaller id comes first."""
    k = min(k, len(scores))
    if k <= 0:
        return Found.nothing()
    # Everything that ties with the k-th best is kept, so that ids break the tie and not the partition.
    found = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    found = found[np.lexsort((ids[found], -scores[found]))][:k]
    return Found(ids[found], scores[found])


def parts(
    ids: NDArray[np.int64], vectors: NDArray[np.float32], attributes: Attributes
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], Attributes]]:
    """Yield the rows in parts that are small enough for searches to wait for one."""
    for start in range(0, len(ids), _PART):
        part = slice(start, start + _PART)
        yield ids[part], vectors[part], attributes.take(part)


class Mask:
    """Slots that an `AttributeFilter` lets through, as of change number `at` of the table."""

    def __init__(self, passes: NDArray[np.bool_], at: int) -> None:
        self.passes, self.at = passes, at
        self.count = int(np.count_nonzero(passes))
        self.bits = np.packbits(passes, bitorder="little")
        self._slots: NDArray[np.int64] | None = None
        self.by_list: tuple[object, int, NDArray[np.int64]] | None = None
        """For an index of lists: the lists, `count` at that time, and how many slots of each list pass."""

    def slots(self) -> NDArray[np.int64]:
        """Return the slots that pass, ascending."""
        if self._slots is None:
            self._slots = np.flatnonzero(self.passes)
        return self._slots

    def update(self, slots: NDArray[np.int64], passes: NDArray[np.bool_]) -> None:
        """Set whether each of the distinct `slots` passes."""
        self.count += int(np.count_nonzero(passes)) - int(np.count_nonzero(self.passes[slots]))
        self.passes[slots] = passes
        octets = slots >> 3
        self.bits[octets] = np.packbits(self.passes.reshape(-1, 8)[octets], axis=1, bitorder="little")[:, 0]
        self._slots = None


class IndexRows:
    """Table of rows. The `masks_max` masks that were used last are kept."""

    def __init__(self, masks_max: int) -> None:
        self._count, self._high, self._free = 0, 0, np.zeros(0, np.int64)
        self._dense, self._sparse = np.zeros(0, np.int32), dict[int, int]()
        self.vectors = np.zeros((0, 0), np.float32)  # [slots, D]
        self.ids = np.zeros(0, np.int64)  # [slots]
        self._attributes = Attributes.unknown(0)
        self._live = np.zeros(0, np.bool_)
        self._masks: dict[AttributeFilter, Mask] = {}
        self._masks_max, self._masks_lock = masks_max, Lock()
        self._log: list[NDArray[np.int64]] = []  # slots of each change since number `_log_from`
        self._log_from, self._logged = 0, 0

    def __len__(self) -> int:
        return self._count

    @property
    def width(self) -> int | None:
        """Width of the vectors; None before the first."""
        return self.vectors.shape[1] or None

    @property
    def high(self) -> int:
        """One above the highest slot that was ever used."""
        return self._high

    @property
    def bytes(self) -> int:
        """Size of the columns; a dict of ids is not counted."""
        columns = (self.vectors, self.ids, *self._attributes, self._live, self._dense)
        return sum(column.nbytes for column in columns)

    def live(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `slots` hold a row."""
        return self._live[slots]

    def slots_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots [n] of `ids` [n]; -1 for unknown ids."""
        # The fast path of a server, whose ids are positions. As unsigned numbers, negative ids are too large for it.
        if len(ids) and not self._sparse and ids.view(np.uint64).max() < len(self._dense):
            return self._dense.take(ids).astype(np.int64)
        slots = np.full(len(ids), -1, np.int64)
        dense = (ids >= 0) & (ids < len(self._dense))
        slots[dense] = self._dense[ids[dense]]
        if self._sparse:
            missed = np.flatnonzero(slots < 0)
            slots[missed] = [self._sparse.get(i, -1) for i in ids[missed].tolist()]
        return slots

    def upsert(self, ids: NDArray[np.int64], vectors: NDArray[np.float32], attributes: Attributes) -> NDArray[np.int64]:
        """Add or replace rows that `checked_rows` returned, and return their slots [n]. Raises `WidthError`."""
        if not len(ids):
            return ids
        if self.width not in (None, vectors.shape[1]):  # another thread may have set it since it was checked
            raise WidthError("vectors", f"a width of {self.width}", str(vectors.shape[1]))
        self.reserve(ids, vectors.shape[1])
        slots = self.slots_of(ids)
        new = slots < 0
        slots[new] = self._take(int(np.count_nonzero(new)))
        self._point(ids[new], slots[new])
        self.vectors[slots] = vectors
        self.ids[slots] = ids
        self._attributes.author[slots] = attributes.author
        self._attributes.category[slots] = attributes.category
        self._attributes.created_ms[slots] = attributes.created_ms
        self._live[slots] = True
        self._count += int(np.count_nonzero(new))
        self._changed(slots)
        return slots

    def delete(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Delete rows, and return the slots [m] that they were in."""
        ids = np.unique(ids)
        slots = self.slots_of(ids)
        ids, slots = ids[slots >= 0], slots[slots >= 0]
        self._forget(ids)
        self._live[slots] = False
        self._free = np.concatenate([self._free, slots])
        self._count -= len(slots)
        self._changed(slots)
        return slots

    def mask(self, where: AttributeFilter) -> Mask:
        """Return the mask of `where`. Several threads may call it at once while nothing changes."""
        with self._masks_lock:
            mask = self._masks.pop(where, None)
            now = self._log_from + len(self._log)
            if mask is None or mask.at < self._log_from or len(mask.passes) < len(self._live):
                mask = Mask(self._live & where.passes(self._attributes) if where != ANY else self._live.copy(), now)
            elif mask.at < now:
                slots = np.unique(np.concatenate(self._log[mask.at - self._log_from :]))
                mask.update(slots, self._live[slots] & where.passes(self._attributes.take(slots)))
                mask.at = now
            self._masks[where] = mask  # the last in the dict was used last
            if len(self._masks) > self._masks_max:
                del self._masks[next(iter(self._masks))]
            return mask

    def exact(self, query: NDArray[np.float32], k: int, mask: Mask, exclude: NDArray[np.int64]) -> Found:
        """Return the best `k` slots of `mask` for `query` [D] without those in `exclude`."""
        if k <= 0 or not mask.count:
            return Found.nothing()
        if len(exclude):
            left = mask.passes[: self._high].copy()
            left[exclude] = False
            slots = np.flatnonzero(left)
        else:
            slots = mask.slots()
        if len(slots) <= _GATHERED_SHARE_MAX * self._high:
            return best(self.vectors.take(slots, 0) @ query, self.ids[slots], k)
        scores = self.vectors[: self._high] @ query
        if len(slots) == self._high:
            return best(scores, self.ids, k)
        # Scores of other slots are left out and not set to -inf: a partition with thousands of equal scores took 10 ms, one of
        # 200,000 distinct scores 0.4 ms.
        return best(scores[slots], self.ids[slots], k)

    def reserve(self, ids: NDArray[np.int64], width: int) -> None:
        """Make room for all new ones of the distinct `ids` at once, so that a batch does not grow the table part by part."""
        new = int(np.count_nonzero(self.slots_of(ids) < 0))
        needed = self._high + new - len(self._free)
        if not new or (needed <= len(self.ids) and self.vectors.shape[1]):
            return
        room = -(-max(needed, _SLOTS_MIN, int(len(self.ids) * _GROWTH)) // 8) * 8
        self.vectors = _grown(self.vectors if self.vectors.shape[1] else np.zeros((0, width), np.float32), room)
        self.ids, self._live = _grown(self.ids, room), _grown(self._live, room)
        author, category, created_ms = self._attributes
        self._attributes = Attributes(_grown(author, room), _grown(category, room), _grown(created_ms, room))

    def _take(self, n: int) -> NDArray[np.int64]:
        """Return `n` slots for new rows: free ones first, then new ones."""
        again = self._free[len(self._free) - min(n, len(self._free)) :]
        self._free = self._free[: len(self._free) - len(again)]
        fresh = np.arange(self._high, self._high + n - len(again))
        self._high += len(fresh)
        return np.concatenate([again, fresh])

    def _point(self, ids: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Note that the new `ids` are in `slots`."""
        dense = ids < _DENSE_PER_SLOT * len(self.ids)
        if dense.any():
            if (top := int(ids[dense].max())) >= (known := len(self._dense)):
                self._dense = _grown(self._dense, max(top + 1, int(known * _GROWTH)))
                self._dense[known:] = -1
            self._dense[ids[dense]] = slots[dense]
        self._sparse.update(zip(ids[~dense].tolist(), slots[~dense].tolist(), strict=True))

    def _forget(self, ids: NDArray[np.int64]) -> None:
        self._dense[ids[ids < len(self._dense)]] = -1
        if self._sparse:
            for i in ids.tolist():
                self._sparse.pop(i, None)

    def _changed(self, slots: NDArray[np.int64]) -> None:
        """Log a change for the masks. A log that is too long is dropped; masks older than it are computed again."""
        self._log.append(slots)
        self._logged += len(slots)
        if self._logged > max(_SLOTS_MIN, _LOG_SHARE * self._high) or len(self._log) > _SLOTS_MIN:
            self._log_from += len(self._log)
            self._log, self._logged = [], 0


def _grown(column: NDArray, room: int) -> NDArray:  # type: ignore[type-arg]
    grown = np.zeros((room, *column.shape[1:]), column.dtype)
    grown[: len(column)] = column
    return grown
