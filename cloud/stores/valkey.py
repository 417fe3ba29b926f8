"""Embedding tables in Valkey, one server or a cluster, for more than one machine.

::

    pr:versions           set of the versions that may be there
    pr:VERSION            hash: width, buckets, expires (Unix ms, 0: never); goes when the version's life is over
    pr:VERSION:{TAG}      hash: id, 8 bytes little-endian -> row, fp16 little-endian; one for each bucket, with the same life

A single server has one bucket: 60 rows are one HMGET. In a cluster ids are spread over buckets whose tags lie evenly over the
slots, and a read is one HMGET a bucket, pipelined per node. A hash for many rows, and not a key for each, because it takes 175
bytes a row where keys take 212 (64 wide), is asked for with less to pack and unpack, and because a version is dropped, counted,
scanned and given another life by the bucket.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from valkey.crc import key_slot

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
    is_version,
)
from pocketrank.cloud.stores.valkey_link import ClientConnection, Command, Link, LinkConfig, Node, open_socket, pack
from pocketrank.cloud.stores.valkey_rows import UnusualReplyError, fields, fields_and_rows, read_rows

__all__ = ["ValkeyConfig", "ValkeyStore"]

Int = NDArray[np.int64]
Half = NDArray[np.float16]

_SLOTS = 16384
_VERSIONS = b"pr:versions"
_SPREAD = np.array(0x9E3779B97F4A7C15, np.uint64)  # Fibonacci hashing: ids of any stride spread evenly
_HALF = np.array(32, np.uint64)


@dataclass(frozen=True)
class ValkeyConfig:
    """How long to wait, and how much to send at a time."""

    timeout_s: float = 1.0
    """For an exchange: a batch of reads whose caller states no deadline, and every other one."""
    buckets: int = 12
    """Hashes that a new version has in a cluster; each is on one node. More spread more evenly over more nodes; measured with
    three, 60 rows took 551 µs with 3 buckets, 610 with 12, 669 with 24 and 789 with 96, all in one run."""
    known_s: float = 1.0
    """How long a version's width and life are taken for known; another process's changes are seen after that at the latest."""
    batch_rows: int = 2048
    """Rows in one exchange, at most."""
    batch_bytes: int = 1 << 20
    """Of rows in one exchange; a row alone may have more."""


class _Table(NamedTuple):
    """What is known of a version."""

    version: str
    width: int
    buckets: int
    expires_ms: int
    asked: float
    """Monotonic time at which it was so."""

    @property
    def expires_s(self) -> float | None:
        return self.expires_ms / 1000 if self.expires_ms else None


class _Route(NamedTuple):
    """Where the buckets of a version are, by the cluster's layout of that time."""

    layout: int
    nodes: list[Node]
    rank: Int
    """[buckets] place of each bucket in the order by node"""
    of_rank: list[tuple[int, int]]
    """[buckets] node's number and bucket at that place"""


@cache
def _tags(buckets: int) -> tuple[bytes, ...]:
    """For each bucket the smallest number whose slot lies in the bucket's share of the slots."""
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < buckets:
        tag = b"%d" % number
        found.setdefault(key_slot(tag) * buckets // _SLOTS, tag)
        number += 1
    return tuple(found[bucket] for bucket in range(buckets))


class ValkeyStore(EmbeddingStore):
    """The store in the servers that `link` names. Connects when it is first asked."""

    def __init__(self, link: LinkConfig, config: ValkeyConfig | None = None) -> None:
        self._link, self._config = Link(link), config or ValkeyConfig()
        self._where = self.where = link.where
        self._known: dict[str, _Table] = {}
        self._routes: dict[tuple[str, int], _Route] = {}
        self._lock = Lock()

    def _end(self, deadline_s: float | None = None) -> float:
        return time.monotonic() + (self._config.timeout_s if deadline_s is None else deadline_s)

    def _table(self, version: str, end: float, *, fresh: bool = False) -> _Table:
        table = self._known.get(version)
        if fresh or table is None or time.monotonic() - table.asked > self._config.known_s:
            table = self._ask([version], end)[0] if is_version(version) else None
            if table is None:
                self._known.pop(version, None)
            else:
                self._known[version] = table
        if table is None or (table.expires_ms and table.expires_ms <= time.time() * 1000):
            raise UnknownVersionError(self._where, "a version with a table", repr(version[:200]))
        return table

    def _ask(self, versions: list[str], end: float) -> list[_Table | None]:
        now = time.monotonic()
        keys = [_meta_key(version) for version in versions]
        replies = self._link.run([_command(key, "HMGET", key, "width", "buckets", "expires") for key in keys], end)
        tables: list[_Table | None] = []
        for version, reply in zip(versions, replies, strict=True):
            if None in reply:
                tables.append(None)
            else:
                width, buckets, expires_ms = map(int, reply)
                tables.append(_Table(version, width, buckets, expires_ms, now))
        return tables

    def create(self, version: str, width: int, *, ttl_s: float | None = None) -> None:
        """Make or keep the table of a version; its life starts anew. Raises as the seam says."""
        checked_table(self._where, version, width)
        end, key = self._end(), _meta_key(version)
        expires_ms = 0 if ttl_s is None else round((time.time() + ttl_s) * 1000)
        buckets = self._config.buckets if self._link.config.cluster else 1
        old = self._ask([version], end)[0]
        if old is not None and old.width != width:
            raise StoreInputError(self._where, f"{version!r} with its width {old.width}", str(width))
        # Listed first: a version that is listed and not there does no harm, one that is there unseen would.
        self._link.run([_command(_VERSIONS, "SADD", _VERSIONS, version)], end)
        one_by_one = [
            pack("MULTI"),
            pack("HSETNX", key, "width", width),
            pack("HSETNX", key, "buckets", buckets),
            pack("HSET", key, "expires", expires_ms),
            _lasting(key, expires_ms),
            pack("EXEC"),
        ]
        self._link.run([Command(key_slot(key), packed) for packed in one_by_one], end)
        table = self._table(version, end, fresh=True)
        if table.width != width:
            raise StoreInputError(self._where, f"{version!r} with its width {table.width}", str(width))
        self._link.run([Command(key_slot(row), _lasting(row, expires_ms)) for row in _row_keys(table)], end)

    def versions(self) -> dict[str, TableInfo]:
        """The tables of all versions whose life is not over. Raises `StoreUnavailableError`."""
        end = self._end()
        names = sorted(name.decode() for name in self._link.run([_command(_VERSIONS, "SMEMBERS", _VERSIONS)], end)[0])
        tables = dict(zip(names, self._ask(names, end), strict=True)) if names else {}
        if gone := [name for name, table in tables.items() if table is None]:
            self._link.run([_command(_VERSIONS, "SREM", _VERSIONS, *gone)], end)
        found = {}
        for name, table in tables.items():
            if table is not None:
                lengths = self._link.run([_command(key, "HLEN", key) for key in _row_keys(table)], end)
                found[name] = TableInfo(table.width, sum(lengths), table.expires_s)
        return found

    def get(self, version: str, ids: NDArray[np.int64], *, deadline_s: float | None = None) -> StoredRows:
        """The rows of `ids`, within `deadline_s` seconds. Raises `UnknownVersionError` and `StoreUnavailableError`."""
        end, keys = self._end(deadline_s), as_ids(self._where, ids)
        table = self._table(version, end)
        rows = self._get(table, keys, deadline_s, end)
        if rows is None or not rows.found.any():
            # Perhaps another process has dropped the version, or made it anew.
            table = self._table(version, end, fresh=True)
            rows = self._get(table, keys, deadline_s, end)
            if rows is None:
                raise StoreError(self._where, f"rows of {table.width} values", "others")
        return rows

    def _get(self, table: _Table, ids: Int, deadline_s: float | None, end: float) -> StoredRows | None:
        """None when there are rows of another width."""
        step = self._step(table)
        if len(ids) <= step:
            return self._get_batch(table, ids, end)
        parts: list[StoredRows] = []
        for start in range(0, len(ids), step):
            # Without a deadline the whole may take its time, as long as each batch comes.
            part = self._get_batch(table, ids[start : start + step], self._end() if deadline_s is None else end)
            if part is None:
                return None
            parts.append(part)
        return StoredRows(np.concatenate([p.vectors for p in parts]), np.concatenate([p.found for p in parts]))

    def _step(self, table: _Table) -> int:
        """Rows in one exchange."""
        return max(1, min(self._config.batch_rows, self._config.batch_bytes // (2 * table.width)))

    def _get_batch(self, table: _Table, ids: Int, end: float) -> StoredRows | None:
        if not len(ids):
            return StoredRows(np.zeros((0, table.width), np.float16), np.zeros(0, np.bool_))
        route = self._route(table, end)
        order: Int | None = None
        if table.buckets == 1:
            nodes, counts = route.nodes, [[len(ids)]]
            packed = [_hmget(table, 0, len(ids)) + fields(ids)[0]]
        else:
            rank = route.rank.take(_bucket(ids, table.buckets))
            order = np.argsort(rank, kind="stable")
            rank, (blob, size) = rank.take(order), fields(ids.take(order))
            bounds = [0, *(np.flatnonzero(rank[1:] != rank[:-1]) + 1).tolist(), len(ids)]
            nodes, counts, last = [], [], -1
            pieces: list[list[bytes]] = []
            for first, after, place in zip(bounds[:-1], bounds[1:], rank.take(bounds[:-1]).tolist(), strict=True):
                number, bucket = route.of_rank[place]
                if number != last:
                    nodes.append(route.nodes[number])
                    counts.append([])
                    pieces.append([])
                    last = number
                counts[-1].append(after - first)
                pieces[-1] += (_hmget(table, bucket, after - first), blob[first * size : after * size])
            packed = [b"".join(part) for part in pieces]

        def use(connections: list[ClientConnection]) -> list[tuple[Half, NDArray[np.bool_]]]:
            socks = [open_socket(connection, end) for connection in connections]
            for sock, data in zip(socks, packed, strict=True):
                sock.sendall(data)
            return [read_rows(sock, count, table.width) for sock, count in zip(socks, counts, strict=True)]

        try:
            parts = self._link.with_connections(nodes, end, use)
        except UnusualReplyError:
            return self._get_slowly(table, ids, end)
        if order is None:
            return StoredRows(*parts[0])
        vectors, found = np.empty((len(ids), table.width), np.float16), np.empty(len(ids), np.bool_)
        vectors[order] = np.concatenate([part[0] for part in parts])
        found[order] = np.concatenate([part[1] for part in parts])
        return StoredRows(vectors, found)

    def _get_slowly(self, table: _Table, ids: Int, end: float) -> StoredRows | None:
        """The same by the client library's reader, which knows errors, and follows slots that have moved."""
        commands, picked = [], []
        for bucket, mine in _split(ids, table.buckets):
            key = _row_key(table, bucket)
            commands.append(Command(key_slot(key), _hmget(table, bucket, len(mine)) + fields(ids[mine])[0]))
            picked.append(mine)
        vectors, found = np.zeros((len(ids), table.width), np.float16), np.zeros(len(ids), np.bool_)
        for mine, reply in zip(picked, self._link.run(commands, end), strict=True):
            for i, value in zip(mine.tolist(), reply, strict=True):
                if value is not None:
                    if len(value) != 2 * table.width:
                        return None
                    vectors[i], found[i] = np.frombuffer(value, "<f2"), True
        return StoredRows(vectors, found)

    def _route(self, table: _Table, end: float) -> _Route:
        of_slot = self._link.nodes(end)
        key = (table.version, table.buckets)
        route = self._routes.get(key)
        if route is None or route.layout != self._link.layout:
            layout = self._link.layout
            of_bucket = [of_slot[key_slot(tag)] for tag in _tags(table.buckets)]
            nodes = list(dict.fromkeys(of_bucket))
            of_rank = sorted((nodes.index(node), bucket) for bucket, node in enumerate(of_bucket))
            rank = np.zeros(table.buckets, np.int64)
            rank[[bucket for _, bucket in of_rank]] = np.arange(table.buckets)
            route = self._routes[key] = _Route(layout, nodes, rank, of_rank)
        return route

    def put(self, version: str, ids: NDArray[np.int64], vectors: NDArray[np.floating]) -> None:
        """Keep rows, some thousand at a time. Raises as the seam says."""
        table = self._table(version, self._end(), fresh=True)
        keys, rows = as_rows(self._where, ids, vectors, table.width)
        step = self._step(table)
        for start in range(0, len(keys), step):
            part = slice(start, start + step)
            commands = []
            for bucket, mine in _split(keys[part], table.buckets):
                key = _row_key(table, bucket)
                blob, _ = fields_and_rows(keys[part][mine], rows[part][mine])
                commands.append(Command(key_slot(key), _array(2 + 2 * len(mine), "HSET", key) + blob))
                if table.expires_ms:  # a hash that the first row has made would stay for ever
                    commands.append(_command(key, "PEXPIREAT", key, table.expires_ms, "NX"))
            self._link.run(commands, self._end())

    def delete(self, version: str, ids: NDArray[np.int64]) -> None:
        """Forget rows. Raises as the seam says."""
        table, keys = self._table(version, self._end(), fresh=True), as_ids(self._where, ids)
        for start in range(0, len(keys), self._config.batch_rows):
            part = keys[start : start + self._config.batch_rows]
            commands = []
            for bucket, mine in _split(part, table.buckets):
                key = _row_key(table, bucket)
                commands.append(Command(key_slot(key), _array(2 + len(mine), "HDEL", key) + fields(part[mine])[0]))
            self._link.run(commands, self._end())

    def drop(self, version: str) -> None:
        """Forget a version. Raises `StoreUnavailableError`."""
        if not is_version(version):
            return
        end, key = self._end(), _meta_key(version)
        table = self._ask([version], end)[0]
        self._known.pop(version, None)
        if table is not None:
            self._link.run([_command(key, "UNLINK", key)], end)
            self._link.run([_command(row, "UNLINK", row) for row in _row_keys(table)], end)
        self._link.run([_command(_VERSIONS, "SREM", _VERSIONS, version)], end)

    def scan(self, version: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """All rows in chunks. Raises as the seam says, and `StoreUnavailableError` in between."""
        return self._scan(self._table(version, self._end(), fresh=True))

    def _scan(self, table: _Table) -> Iterator[tuple[Int, Half]]:
        for key in _row_keys(table):
            seen: set[bytes] = set()  # a hash that grows meanwhile comes in part again
            cursor = b"0"
            while True:
                scan = _command(key, "HSCAN", key, cursor, "COUNT", self._step(table))
                cursor, reply = self._link.run([scan], self._end())[0]
                new = [i for i in range(0, len(reply), 2) if reply[i] not in seen]
                names, values = [reply[i] for i in new], [reply[i + 1] for i in new]
                seen.update(names)
                if any(len(value) != 2 * table.width for value in values):
                    raise StoreError(self._where, f"rows of {table.width} values", "others")
                if names:
                    ids = np.frombuffer(b"".join(names), "<i8").astype(np.int64)
                    yield ids, np.frombuffer(b"".join(values), "<f2").astype(np.float16).reshape(-1, table.width)
                if cursor == b"0":
                    break

    def close(self) -> None:
        """Close all connections."""
        self._link.close()


def _meta_key(version: str) -> bytes:
    return b"pr:%b" % version.encode()


def _row_key(table: _Table, bucket: int) -> bytes:
    return b"pr:%b:{%b}" % (table.version.encode(), _tags(table.buckets)[bucket])


def _row_keys(table: _Table) -> list[bytes]:
    return [_row_key(table, bucket) for bucket in range(table.buckets)]


def _command(key: bytes, *parts: bytes | str | int) -> Command:
    return Command(key_slot(key), pack(*parts))


def _array(parts: int, *first: bytes | str) -> bytes:
    """The beginning of a command of so many parts."""
    return b"*%d\r\n" % parts + pack(*first).split(b"\r\n", 1)[1]


@cache
def _hmget_of(version: str, buckets: int, bucket: int, parts: int) -> bytes:
    key = b"pr:%b:{%b}" % (version.encode(), _tags(buckets)[bucket])
    return _array(parts, "HMGET", key)


def _hmget(table: _Table, bucket: int, ids: int) -> bytes:
    return _hmget_of(table.version, table.buckets, bucket, 2 + ids)


def _lasting(key: bytes, expires_ms: int) -> bytes:
    return pack("PEXPIREAT", key, expires_ms) if expires_ms else pack("PERSIST", key)


def _bucket(ids: Int, buckets: int) -> Int:
    spread = (ids.view(np.uint64) * _SPREAD) >> _HALF
    return ((spread * np.uint64(buckets)) >> _HALF).view(np.int64)


def _split(ids: Int, buckets: int) -> list[tuple[int, Int]]:
    """Which of `ids` are in which bucket."""
    bucket = _bucket(ids, buckets)
    order = np.argsort(bucket, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(bucket[order])) + 1)
    return [(int(bucket[part[0]]), part) for part in parts if len(part)]
