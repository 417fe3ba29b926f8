"""Embedding tables in Valkey, one server or a cluster, for more than one machine.

`pocketrank.cloud.stores.valkey_layout` has the keys, `pocketrank.cloud.stores.valkey_link` the connections, and
`pocketrank.cloud.stores.valkey_rows` the bytes of rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
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
from pocketrank.cloud.stores.valkey_layout import (
    VERSIONS,
    ValkeyTable,
    begin_command,
    bucket_of,
    command,
    expiry,
    split_by_bucket,
    table_key,
)
from pocketrank.cloud.stores.valkey_link import ClientConnection, Command, Link, LinkConfig, Node, open_socket, pack
from pocketrank.cloud.stores.valkey_rows import UnusualReplyError, fields, fields_and_rows, read_rows

__all__ = ["ValkeyConfig", "ValkeyStore"]

Int = NDArray[np.int64]
Half = NDArray[np.float16]


@dataclass(frozen=True)
class ValkeyConfig:
    """Time-outs and batch sizes."""

    timeout_s: float = 1.0
    """Time-out in seconds of an exchange: a batch of reads without a deadline, or any other call."""
    buckets: int = 12
    """Hashes of a new version in a cluster; each is on one node. More buckets are spread more evenly over more nodes. In one
    run with three nodes, 60 rows took 551 µs with 3 buckets, 610 with 12, 669 with 24 and 789 with 96."""
    known_s: float = 1.0
    """Seconds for which the width and the expiry of a version are cached: the longest delay until a change is seen."""
    batch_rows: int = 2048
    """Largest number of rows in one exchange."""
    batch_bytes: int = 1 << 20
    """Largest size of the rows in one exchange; a single row may be larger."""


class _Route(NamedTuple):
    """Nodes of the buckets of a version, in one layout of the cluster."""

    layout: int
    nodes: list[Node]
    rank: Int
    """[buckets] position of each bucket in the order by node"""
    of_rank: list[tuple[int, int]]
    """[buckets] number of the node, and bucket, at each position"""


class ValkeyStore(EmbeddingStore):
    """Store in the servers of `link`. It connects with the first call."""

    def __init__(self, link: LinkConfig, config: ValkeyConfig | None = None) -> None:
        self._link, self._config = Link(link), config or ValkeyConfig()
        self._where = self.where = link.where
        self._known: dict[str, ValkeyTable] = {}
        self._routes: dict[tuple[str, int], _Route] = {}

    def _deadline(self, deadline_s: float | None = None) -> float:
        return time.monotonic() + (self._config.timeout_s if deadline_s is None else deadline_s)

    def _table(self, version: str, deadline: float, *, fresh: bool = False) -> ValkeyTable:
        table = self._known.get(version)
        if fresh or table is None or time.monotonic() - table.read_at > self._config.known_s:
            table = self._read_tables([version], deadline)[0] if is_version(version) else None
            if table is None:
                self._known.pop(version, None)
            else:
                self._known[version] = table
        if table is None or (table.expires_ms and table.expires_ms <= time.time() * 1000):
            raise UnknownVersionError(self._where, "a version with a table", repr(version[:200]))
        return table

    def _read_tables(self, versions: list[str], deadline: float) -> list[ValkeyTable | None]:
        now = time.monotonic()
        keys = [table_key(version) for version in versions]
        replies = self._link.run([command(key, "HMGET", key, "width", "buckets", "expires") for key in keys], deadline)
        tables: list[ValkeyTable | None] = []
        for version, reply in zip(versions, replies, strict=True):
            if None in reply:
                tables.append(None)
            else:
                width, buckets, expires_ms = map(int, reply)
                tables.append(ValkeyTable(version, width, buckets, expires_ms, now))
        return tables

    def create(self, version: str, width: int, *, ttl_s: float | None = None) -> None:
        """Create the table of a version, or keep it with the new expiry. Raises as `EmbeddingStore.create` does."""
        checked_table(self._where, version, width)
        deadline, key = self._deadline(), table_key(version)
        expires_ms = 0 if ttl_s is None else round((time.time() + ttl_s) * 1000)
        buckets = self._config.buckets if self._link.config.cluster else 1
        old = self._read_tables([version], deadline)[0]
        if old is not None and old.width != width:
            raise StoreInputError(self._where, f"{version!r} with its width {old.width}", str(width))
        # The version is listed first: a listed version without a table does no harm, an unlisted table would never be dropped.
        self._link.run([command(VERSIONS, "SADD", VERSIONS, version)], deadline)
        # Another process may create the same version: the transaction leaves one width and one number of buckets.
        transaction = [
            pack("MULTI"),
            pack("HSETNX", key, "width", width),
            pack("HSETNX", key, "buckets", buckets),
            pack("HSET", key, "expires", expires_ms),
            expiry(key, expires_ms),
            pack("EXEC"),
        ]
        self._link.run([Command(key_slot(key), packed) for packed in transaction], deadline)
        table = self._table(version, deadline, fresh=True)
        if table.width != width:
            raise StoreInputError(self._where, f"{version!r} with its width {table.width}", str(width))
        self._link.run([Command(key_slot(row), expiry(row, expires_ms)) for row in table.row_keys()], deadline)

    def versions(self) -> dict[str, TableInfo]:
        """Return the tables of all versions that have not expired. Raises `StoreUnavailableError`."""
        deadline = self._deadline()
        names = sorted(name.decode() for name in self._link.run([command(VERSIONS, "SMEMBERS", VERSIONS)], deadline)[0])
        tables = dict(zip(names, self._read_tables(names, deadline), strict=True)) if names else {}
        if expired := [name for name, table in tables.items() if table is None]:
            self._link.run([command(VERSIONS, "SREM", VERSIONS, *expired)], deadline)
        found = {}
        for name, table in tables.items():
            if table is not None:
                lengths = self._link.run([command(key, "HLEN", key) for key in table.row_keys()], deadline)
                found[name] = TableInfo(table.width, sum(lengths), table.expires_s)
        return found

    def get(self, version: str, ids: NDArray[np.int64], *, deadline_s: float | None = None) -> StoredRows:
        """Return the rows of `ids`, within `deadline_s` seconds. Raises `UnknownVersionError` and `StoreUnavailableError`."""
        deadline, keys = self._deadline(deadline_s), as_ids(self._where, ids)
        table = self._table(version, deadline)
        rows = self._get(table, keys, deadline_s, deadline)
        if rows is None or not rows.found.any():
            # Another process may have dropped the version, or created it again.
            table = self._table(version, deadline, fresh=True)
            rows = self._get(table, keys, deadline_s, deadline)
            if rows is None:
                raise StoreError(self._where, f"rows of {table.width} values", "rows of another width")
        return rows

    def _get(self, table: ValkeyTable, ids: Int, deadline_s: float | None, deadline: float) -> StoredRows | None:
        """Return the rows, or None if some have another width."""
        step = self._step(table)
        if len(ids) <= step:
            return self._get_batch(table, ids, deadline)
        parts: list[StoredRows] = []
        for start in range(0, len(ids), step):
            # Without a deadline, the time-out is that of each batch and not of the whole call.
            part = self._get_batch(table, ids[start : start + step], self._deadline() if deadline_s is None else deadline)
            if part is None:
                return None
            parts.append(part)
        return StoredRows(np.concatenate([p.vectors for p in parts]), np.concatenate([p.found for p in parts]))

    def _step(self, table: ValkeyTable) -> int:
        """Return the number of rows in one exchange."""
        return max(1, min(self._config.batch_rows, self._config.batch_bytes // (2 * table.width)))

    def _get_batch(self, table: ValkeyTable, ids: Int, deadline: float) -> StoredRows | None:
        if not len(ids):
            return StoredRows(np.zeros((0, table.width), np.float16), np.zeros(0, np.bool_))
        route = self._route(table, deadline)
        order: Int | None = None
        if table.buckets == 1:
            nodes, counts = route.nodes, [[len(ids)]]
            packed = [table.hmget(0, len(ids)) + fields(ids)[0]]
        else:
            # Ids in the order of node and bucket. Each run of a bucket is one HMGET, and those of a node are one write.
            rank = route.rank.take(bucket_of(ids, table.buckets))
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
                pieces[-1] += (table.hmget(bucket, after - first), blob[first * size : after * size])
            packed = [b"".join(part) for part in pieces]

        def use(connections: list[ClientConnection]) -> list[tuple[Half, NDArray[np.bool_]]]:
            socks = [open_socket(connection, deadline) for connection in connections]
            for sock, data in zip(socks, packed, strict=True):
                sock.sendall(data)
            return [read_rows(sock, count, table.width) for sock, count in zip(socks, counts, strict=True)]

        try:
            parts = self._link.with_connections(nodes, deadline, use)
        except UnusualReplyError:
            return self._get_by_library(table, ids, deadline)
        if order is None:
            return StoredRows(*parts[0])
        vectors, found = np.empty((len(ids), table.width), np.float16), np.empty(len(ids), np.bool_)
        vectors[order] = np.concatenate([part[0] for part in parts])
        found[order] = np.concatenate([part[1] for part in parts])
        return StoredRows(vectors, found)

    def _get_by_library(self, table: ValkeyTable, ids: Int, deadline: float) -> StoredRows | None:
        """Return the rows as `_get_batch` does, with the client library, which reads errors, and following moved slots."""
        commands, picked = [], []
        for bucket, mine in split_by_bucket(ids, table.buckets):
            key = table.row_key(bucket)
            commands.append(Command(key_slot(key), table.hmget(bucket, len(mine)) + fields(ids[mine])[0]))
            picked.append(mine)
        vectors, found = np.zeros((len(ids), table.width), np.float16), np.zeros(len(ids), np.bool_)
        for mine, reply in zip(picked, self._link.run(commands, deadline), strict=True):
            for i, value in zip(mine.tolist(), reply, strict=True):
                if value is not None:
                    if len(value) != 2 * table.width:
                        return None
                    vectors[i], found[i] = np.frombuffer(value, "<f2"), True
        return StoredRows(vectors, found)

    def _route(self, table: ValkeyTable, deadline: float) -> _Route:
        of_slot = self._link.nodes(deadline)
        key = (table.version, table.buckets)
        route = self._routes.get(key)
        if route is None or route.layout != self._link.layout:
            layout = self._link.layout
            of_bucket = [of_slot[slot] for slot in table.slots()]
            nodes = list(dict.fromkeys(of_bucket))
            of_rank = sorted((nodes.index(node), bucket) for bucket, node in enumerate(of_bucket))
            rank = np.zeros(table.buckets, np.int64)
            rank[[bucket for _, bucket in of_rank]] = np.arange(table.buckets)
            route = self._routes[key] = _Route(layout, nodes, rank, of_rank)
        return route

    def put(self, version: str, ids: NDArray[np.int64], vectors: NDArray[np.floating]) -> None:
        """Write rows, in batches. Raises as `EmbeddingStore.put` does."""
        table = self._table(version, self._deadline(), fresh=True)
        keys, rows = as_rows(self._where, ids, vectors, table.width)
        step = self._step(table)
        for start in range(0, len(keys), step):
            part = slice(start, start + step)
            commands = []
            for bucket, mine in split_by_bucket(keys[part], table.buckets):
                key = table.row_key(bucket)
                blob, _ = fields_and_rows(keys[part][mine], rows[part][mine])
                commands.append(Command(key_slot(key), begin_command(2 + 2 * len(mine), "HSET", key) + blob))
                if table.expires_ms:  # the first row creates the hash, which has no expiry yet
                    commands.append(command(key, "PEXPIREAT", key, table.expires_ms, "NX"))
            self._link.run(commands, self._deadline())

    def delete(self, version: str, ids: NDArray[np.int64]) -> None:
        """Delete rows. Raises as `EmbeddingStore.delete` does, and `StoreUnavailableError`."""
        table, keys = self._table(version, self._deadline(), fresh=True), as_ids(self._where, ids)
        for start in range(0, len(keys), self._config.batch_rows):
            part = keys[start : start + self._config.batch_rows]
            commands = []
            for bucket, mine in split_by_bucket(part, table.buckets):
                key = table.row_key(bucket)
                commands.append(Command(key_slot(key), begin_command(2 + len(mine), "HDEL", key) + fields(part[mine])[0]))
            self._link.run(commands, self._deadline())

    def drop(self, version: str) -> None:
        """Drop a version. Raises `StoreUnavailableError`."""
        if not is_version(version):
            return
        deadline, key = self._deadline(), table_key(version)
        table = self._read_tables([version], deadline)[0]
        self._known.pop(version, None)
        if table is not None:
            self._link.run([command(key, "UNLINK", key)], deadline)
            self._link.run([command(row, "UNLINK", row) for row in table.row_keys()], deadline)
        self._link.run([command(VERSIONS, "SREM", VERSIONS, version)], deadline)

    def scan(self, version: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Yield all rows in chunks. Raises as `EmbeddingStore.scan` does, and at any chunk `StoreUnavailableError`."""
        return self._scan(self._table(version, self._deadline(), fresh=True))

    def _scan(self, table: ValkeyTable) -> Iterator[tuple[Int, Half]]:
        for key in table.row_keys():
            seen: set[bytes] = set()  # HSCAN repeats fields of a hash that grows meanwhile
            cursor = b"0"
            while True:
                scan = command(key, "HSCAN", key, cursor, "COUNT", self._step(table))
                cursor, reply = self._link.run([scan], self._deadline())[0]
                new = [i for i in range(0, len(reply), 2) if reply[i] not in seen]
                names, values = [reply[i] for i in new], [reply[i + 1] for i in new]
                seen.update(names)
                if any(len(value) != 2 * table.width for value in values):
                    raise StoreError(self._where, f"rows of {table.width} values", "rows of another width")
                if names:
                    ids = np.frombuffer(b"".join(names), "<i8").astype(np.int64)
                    yield ids, np.frombuffer(b"".join(values), "<f2").astype(np.float16).reshape(-1, table.width)
                if cursor == b"0":
                    break

    def close(self) -> None:
        """Close all connections."""
        self._link.close()
