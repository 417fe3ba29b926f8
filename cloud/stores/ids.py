"""Index from int64 ids to positions, in memory that other processes may read meanwhile.

It is a hash table with open addressing over buckets of eight. The home bucket of an id is `id mod P`, P a prime; an id is in
its home bucket, or in the next one that had room when the id was inserted. A look-up is the same few calls of numpy for any
number of ids: gather the buckets, compare, select. At most 3 of 10 slots are taken, so that of random ids about one in 2,000 is
outside of its home bucket, and of consecutive ids none.

::

    entries  int64 [P, 16]     one bucket: 8 ids, then their 8 positions

An id is written once, after its position, and never moves. From then on only its position changes, by one aligned store of 8
bytes. A reader therefore sees the position from before or after an update and never half of one, on machines that keep the
order of stores (x86-64). Position 0 means that the id is absent. A free slot of bucket b holds an id whose home is half a table
away: it is never looked up in b, and so every int64 can be an id.
"""

from __future__ import annotations

from math import isqrt
from typing import cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKET", "IdIndex", "buckets_for"]

Int = NDArray[np.int64]

BUCKET = 8
"""Ids in a bucket: they take one cache line, and their positions another."""

_LOAD = 0.3
"""Largest share of taken slots. Of 200 k random ids, one in 2,299 was outside of its home bucket at .3, one in 406 at .4 and
one in 119 at .5, at 53, 40 and 32 bytes an id. Each such id takes its batch some µs more."""

_FEW = 8
"""Up to this number, ids are faster to look up one by one."""

_BUCKETS_MIN = 67


def buckets_for(ids: int) -> int:
    """Return the number of buckets of an index with room for so many ids; it is a prime."""
    number = max(_BUCKETS_MIN, int(ids / (BUCKET * _LOAD)) + 1) | 1
    while any(number % divisor == 0 for divisor in range(3, isqrt(number) + 1, 2)):
        number += 2
    return number


class IdIndex:
    """Index in `entries` [P, 16]. There is one writer, and readers need no lock. `fresh` initialises the memory."""

    def __init__(self, entries: Int, *, fresh: bool) -> None:
        self._entries, self._flat = entries, entries.reshape(-1)
        self._buckets = len(entries)
        self._modulus = np.array(self._buckets, np.int64)  # an array, because numpy takes longer with a scalar
        if fresh:
            entries[:, :BUCKET] = self._free(np.arange(self._buckets))[:, None]
            entries[:, BUCKET:] = 0

    @property
    def room(self) -> int:
        """Largest number of ids, including deleted ones."""
        return int(self._buckets * BUCKET * _LOAD)

    def __call__(self, ids: Int) -> Int:
        """Return the positions [n] of `ids` [n], 0 for absent ids."""
        entries = self._entries.take(ids % self._modulus, axis=0)
        hit = entries[:, :BUCKET] == ids[:, None]
        positions: Int = entries[:, BUCKET:][hit]
        if len(positions) == len(ids):  # an id is in a bucket at most once
            return positions
        found = np.zeros(len(ids), np.int64)
        in_home = hit.any(1)
        found[in_home] = positions
        rest = np.flatnonzero(~in_home)
        # Buckets are filled from the front: only past a full home bucket can an id be in another one.
        rest = rest[entries[rest, BUCKET - 1] != self._free(ids[rest] % self._modulus)]
        if len(rest) <= _FEW:
            found[rest] = [self._beyond(id_) for id_ in ids[rest].tolist()]
        else:
            slots = self.slots(ids[rest])
            found[rest] = np.where(slots >= 0, self._flat[slots], 0)
        return found

    def _beyond(self, id_: int) -> int:
        """Return the position of one id that is not in its home bucket, which is full."""
        bucket = id_ % self._buckets
        while True:
            bucket = (bucket + 1) % self._buckets
            entry = self._entries[bucket].tolist()
            if id_ in entry[:BUCKET]:
                return int(entry[BUCKET + entry.index(id_)])
            if entry[BUCKET - 1] == (bucket + self._buckets // 2) % self._buckets:
                return 0

    def slots(self, ids: Int) -> Int:
        """Return the slots of `ids` [n], as indices of their positions in the flat `entries`; -1 for ids never inserted."""
        slots = np.full(len(ids), -1, np.int64)
        bucket, left = ids % self._modulus, np.arange(len(ids))
        while len(left):
            keys = self._entries.take(bucket, axis=0)[:, :BUCKET]
            hit = keys == ids[left, None]
            here = hit.any(1)
            slots[left[here]] = bucket[here] * 2 * BUCKET + BUCKET + hit[here].argmax(1)
            on = ~here & (keys[:, -1] != self._free(bucket))
            left, bucket = left[on], (bucket[on] + 1) % self._modulus
        return slots

    def set(self, slots: Int, positions: Int | int) -> None:
        """Set the positions of the ids at `slots`."""
        self._flat[slots] = positions

    def at(self, slots: Int) -> Int:
        """Return the positions of the ids at `slots`."""
        return self._flat.take(slots)

    def insert(self, ids: Int, positions: Int) -> None:
        """Insert `ids` [n], which repeat none and were never inserted. The caller ensures that there is `room`."""
        bucket = ids % self._modulus
        while len(ids):
            order = np.argsort(bucket, kind="stable")
            ids, positions, bucket = ids[order], positions[order], bucket[order]
            rank = np.arange(len(ids)) - np.searchsorted(bucket, bucket)
            keys = self._entries.take(bucket, axis=0)[:, :BUCKET]
            # The next free slot of the bucket, after those that ids of this batch with the same bucket take.
            lane = (keys != self._free(bucket)[:, None]).sum(1) + rank
            fits = lane < BUCKET
            slot = bucket[fits] * 2 * BUCKET + lane[fits]
            self._flat[slot + BUCKET] = positions[fits]
            self._flat[slot] = ids[fits]
            ids, positions, bucket = ids[~fits], positions[~fits], (bucket[~fits] + 1) % self._modulus

    def taken(self) -> int:
        """Return the number of taken slots, including those of deleted ids."""
        return int((self._entries[:, :BUCKET] != self._free(np.arange(self._buckets))[:, None]).sum())

    def items(self, start: int, buckets: int) -> tuple[Int, Int]:
        """Return the ids and positions in so many buckets from `start` on, without absent ids."""
        part = self._entries[start : start + buckets].copy()
        # A writer that was killed may have written a position and not its id.
        free = self._free(np.arange(start, start + len(part)))
        present = (part[:, BUCKET:] > 0) & (part[:, :BUCKET] != free[:, None])
        return part[:, :BUCKET][present], part[:, BUCKET:][present]

    def __len__(self) -> int:
        return self._buckets

    def _free(self, bucket: Int) -> Int:
        return cast(Int, (bucket + self._buckets // 2) % self._modulus)
