"""From int64 ids to positions, in memory that other processes may read meanwhile.

Open addressing over buckets of eight: an id lives in bucket `id mod P`, P prime, or in the next one that had room when it
came. A look-up is the same few numpy calls for any number of ids: gather the buckets, compare, pick. At most 3 of 10 places are
taken, so for random ids one in some 2,000 lives outside of its own bucket; consecutive ids never do.

::

    entries  int64 [P, 16]     one bucket: 8 ids, then their 8 positions

An id is written once, after its position, and never moves; from then on only the position changes, one aligned 8-byte store.
So a reader sees the position from before or from after an update and never half of one, on machines that keep the order of
stores (x86-64). Position 0 means not there. A free place of bucket b holds an id that belongs half the table away: it is never
looked for in b, and so every int64 can be an id.
"""

from __future__ import annotations

from math import isqrt
from typing import cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKET", "IdIndex", "buckets_for"]

Int = NDArray[np.int64]

BUCKET = 8
"""Ids a bucket: a cache line of them, and another of their positions."""

_LOAD = 0.3
"""Share of the places that may be taken. Of 200 k random ids one in 2,299 was outside of its own bucket at .3, one in 406 at .4
and one in 119 at .5, for 53, 40 and 32 bytes an id; such an id costs its batch some µs more."""

_FEW = 8
"""Up to so many ids are faster looked for one by one."""

_BUCKETS_MIN = 67


def buckets_for(ids: int) -> int:
    """How many buckets an index of at most so many ids has; a prime."""
    number = max(_BUCKETS_MIN, int(ids / (BUCKET * _LOAD)) + 1) | 1
    while any(number % divisor == 0 for divisor in range(3, isqrt(number) + 1, 2)):
        number += 2
    return number


class IdIndex:
    """The index in `entries` [P, 16]. One writer; readers need no lock. `fresh` says that the memory holds nothing yet."""

    def __init__(self, entries: Int, *, fresh: bool) -> None:
        self._entries, self._flat = entries, entries.reshape(-1)
        self._buckets = len(entries)
        self._modulus = np.array(self._buckets, np.int64)  # an array, because numpy takes longer with a scalar
        if fresh:
            entries[:, :BUCKET] = self._free(np.arange(self._buckets))[:, None]
            entries[:, BUCKET:] = 0

    @property
    def room(self) -> int:
        """Ids that the index may hold, deleted ones included."""
        return int(self._buckets * BUCKET * _LOAD)

    def __call__(self, ids: Int) -> Int:
        """Positions [n] of `ids` [n], 0 where there is none."""
        entries = self._entries.take(ids % self._modulus, axis=0)
        hit = entries[:, :BUCKET] == ids[:, None]
        positions: Int = entries[:, BUCKET:][hit]
        if len(positions) == len(ids):  # an id is in a bucket at most once
            return positions
        found = np.zeros(len(ids), np.int64)
        at_home = hit.any(1)
        found[at_home] = positions
        rest = np.flatnonzero(~at_home)
        # A bucket is filled from the front, and what found it full went on to the next one.
        rest = rest[entries[rest, BUCKET - 1] != self._free(ids[rest] % self._modulus)]
        if len(rest) <= _FEW:
            found[rest] = [self._beyond(id_) for id_ in ids[rest].tolist()]
        else:
            places = self.places(ids[rest])
            found[rest] = np.where(places >= 0, self._flat[places], 0)
        return found

    def _beyond(self, id_: int) -> int:
        """The position of one id that is not in its own bucket, which is full."""
        bucket = id_ % self._buckets
        while True:
            bucket = (bucket + 1) % self._buckets
            entry = self._entries[bucket].tolist()
            if id_ in entry[:BUCKET]:
                return int(entry[BUCKET + entry.index(id_)])
            if entry[BUCKET - 1] == (bucket + self._buckets // 2) % self._buckets:
                return 0

    def places(self, ids: Int) -> Int:
        """Where in `entries`, flat, the positions of `ids` [n] are kept; -1 for an id that never was there."""
        places = np.full(len(ids), -1, np.int64)
        bucket, left = ids % self._modulus, np.arange(len(ids))
        while len(left):
            keys = self._entries.take(bucket, axis=0)[:, :BUCKET]
            hit = keys == ids[left, None]
            here = hit.any(1)
            places[left[here]] = bucket[here] * 2 * BUCKET + BUCKET + hit[here].argmax(1)
            on = ~here & (keys[:, -1] != self._free(bucket))
            left, bucket = left[on], (bucket[on] + 1) % self._modulus
        return places

    def set(self, places: Int, positions: Int | int) -> None:
        """Let the ids at `places` have these positions."""
        self._flat[places] = positions

    def at(self, places: Int) -> Int:
        """The positions kept at `places`."""
        return self._flat.take(places)

    def insert(self, ids: Int, positions: Int) -> None:
        """Take in `ids` [n] that never were there, without repeats. The caller keeps to `room`."""
        bucket = ids % self._modulus
        while len(ids):
            order = np.argsort(bucket, kind="stable")
            ids, positions, bucket = ids[order], positions[order], bucket[order]
            rank = np.arange(len(ids)) - np.searchsorted(bucket, bucket)
            keys = self._entries.take(bucket, axis=0)[:, :BUCKET]
            lane = (keys != self._free(bucket)[:, None]).sum(1) + rank
            fits = lane < BUCKET
            place = bucket[fits] * 2 * BUCKET + lane[fits]
            self._flat[place + BUCKET] = positions[fits]
            self._flat[place] = ids[fits]
            ids, positions, bucket = ids[~fits], positions[~fits], (bucket[~fits] + 1) % self._modulus

    def taken(self) -> int:
        """Places taken, those of deleted ids included."""
        return int((self._entries[:, :BUCKET] != self._free(np.arange(self._buckets))[:, None]).sum())

    def items(self, start: int, buckets: int) -> tuple[Int, Int]:
        """Ids and positions in so many buckets from `start` on, without those that are not there."""
        part = self._entries[start : start + buckets].copy()
        # A writer that was killed may have left a position whose id is not written.
        free = self._free(np.arange(start, start + len(part)))
        there = (part[:, BUCKET:] > 0) & (part[:, :BUCKET] != free[:, None])
        return part[:, :BUCKET][there], part[:, BUCKET:][there]

    def __len__(self) -> int:
        return self._buckets

    def _free(self, bucket: Int) -> Int:
        return cast(Int, (bucket + self._buckets // 2) % self._modulus)
