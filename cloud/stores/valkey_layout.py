"""Layout of the embedding tables in Valkey: the keys, and the bucket of each id.

::

    pr:versions           set of the versions that may have a table
    pr:VERSION            hash: width, buckets, expires (Unix ms, 0: never); expires with the version
    pr:VERSION:{TAG}      hash: id, 8 bytes little-endian -> row, fp16 little-endian; one for each bucket, expires likewise

A single server has one bucket: 60 rows are one HMGET. In a cluster the ids are spread over buckets, whose tags are spread
evenly over the slots, and a read is one HMGET a bucket, pipelined per node. There is a hash for many rows and not a key for
each row, because a row then takes 175 bytes instead of 212 (64 wide), there is less to pack and unpack for a read, and a
version is dropped, counted, scanned and given another expiry by the bucket.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from valkey.crc import key_slot

from pocketrank.cloud.stores.valkey_link import SLOTS, Command, pack

__all__ = ["VERSIONS", "ValkeyTable", "begin_command", "bucket_of", "command", "expiry", "split_by_bucket", "table_key"]

Int = NDArray[np.int64]

VERSIONS = b"pr:versions"
_SPREAD = np.array(0x9E3779B97F4A7C15, np.uint64)  # Fibonacci hashing: ids of any stride are spread evenly
_HALF = np.array(32, np.uint64)


class ValkeyTable(NamedTuple):
    """The table of a version, as it was read from the server."""

    version: str
    width: int
    buckets: int
    expires_ms: int
    """Unix time in milliseconds at which the table expires; 0: never."""
    read_at: float
    """Monotonic time in seconds of the reading."""

    @property
    def expires_s(self) -> float | None:
        """Unix time in seconds at which the table expires; None: never."""
        return self.expires_ms / 1000 if self.expires_ms else None

    def row_key(self, bucket: int) -> bytes:
        """Return the key of a bucket's rows."""
        return _row_key(self.version, self.buckets, bucket)

    def row_keys(self) -> list[bytes]:
        """Return the keys of all rows."""
        return [self.row_key(bucket) for bucket in range(self.buckets)]

    def hmget(self, bucket: int, ids: int) -> bytes:
        """Return the beginning of a packed HMGET of so many ids of a bucket; the packed ids follow."""
        return _hmget(self.version, self.buckets, bucket, 2 + ids)

    def slots(self) -> list[int]:
        """Return the slot of each bucket."""
        return [key_slot(tag) for tag in _tags(self.buckets)]


def table_key(version: str) -> bytes:
    """Return the key of a version's width, buckets and expiry."""
    return b"pr:%b" % version.encode()


def command(key: bytes, *parts: bytes | str | int) -> Command:
    """Return a packed command with the slot of `key`."""
    return Command(key_slot(key), pack(*parts))


def begin_command(parts: int, *first: bytes | str) -> bytes:
    """Return the beginning of a packed command of so many parts; the other packed parts follow."""
    return b"*%d\r\n" % parts + pack(*first).split(b"\r\n", 1)[1]


def expiry(key: bytes, expires_ms: int) -> bytes:
    """Return a packed command that gives `key` this expiry, or none for 0."""
    return pack("PEXPIREAT", key, expires_ms) if expires_ms else pack("PERSIST", key)


def bucket_of(ids: Int, buckets: int) -> Int:
    """Return the bucket of each of `ids` [n]."""
    spread = (ids.view(np.uint64) * _SPREAD) >> _HALF
    return ((spread * np.uint64(buckets)) >> _HALF).view(np.int64)


def split_by_bucket(ids: Int, buckets: int) -> list[tuple[int, Int]]:
    """Return the buckets of `ids` [n], each with the indices of its ids."""
    bucket = bucket_of(ids, buckets)
    order = np.argsort(bucket, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(bucket[order])) + 1)
    return [(int(bucket[part[0]]), part) for part in parts if len(part)]


@cache
def _tags(buckets: int) -> tuple[bytes, ...]:
    """Return for each bucket the smallest number whose slot is in the bucket's share of the slots."""
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < buckets:
        tag = b"%d" % number
        found.setdefault(key_slot(tag) * buckets // SLOTS, tag)
        number += 1
    return tuple(found[bucket] for bucket in range(buckets))


def _row_key(version: str, buckets: int, bucket: int) -> bytes:
    return b"pr:%b:{%b}" % (version.encode(), _tags(buckets)[bucket])


@cache
def _hmget(version: str, buckets: int, bucket: int, parts: int) -> bytes:
    return begin_command(parts, "HMGET", _row_key(version, buckets, bucket))
