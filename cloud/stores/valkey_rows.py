"""Rows as hash fields in the protocol of Valkey, packed and parsed many at a time.

All ids have one length, and all rows of a table have one. A batch of fields is therefore a byte matrix, and so is the reply if
all rows are found: there is no work per row in Python. A field is an id as 8 bytes little-endian; its value is the row, in fp16
little-endian.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from valkey.exceptions import ConnectionError as ValkeyConnectionError

__all__ = ["UnusualReplyError", "fields", "fields_and_rows", "read_rows"]

Bytes = NDArray[np.uint8]

_END = b"\r\n"
_ABSENT = b"$-1\r\n"
_ERROR = b"\r\n-"


class UnusualReplyError(Exception):
    """The reply is an error, or its rows have another width. The rest of the reply is not read from the connection."""


class _Bulk(NamedTuple):
    head: bytes
    size: int
    whole: int


@cache
def _bulk(size: int) -> _Bulk:
    head = b"$%d\r\n" % size
    return _Bulk(head, size, len(head) + size + len(_END))


def _fill(out: Bytes, at: int, bulk: _Bulk, values: Bytes) -> int:
    head, size = len(bulk.head), bulk.size
    out[:, at : at + head] = np.frombuffer(bulk.head, np.uint8)
    out[:, at + head : at + head + size] = values
    out[:, at + head + size : at + bulk.whole] = np.frombuffer(_END, np.uint8)
    return at + bulk.whole


_ID = _bulk(8)


def fields(ids: NDArray[np.int64]) -> tuple[bytes, int]:
    """Return the packed fields of `ids` [n], one after the other, and the length of each."""
    out = np.empty((len(ids), _ID.whole), np.uint8)
    _fill(out, 0, _ID, np.ascontiguousarray(ids, "<i8").view(np.uint8).reshape(-1, 8))
    return out.tobytes(), _ID.whole


def fields_and_rows(ids: NDArray[np.int64], rows: NDArray[np.float16]) -> tuple[bytes, int]:
    """Return the packed `ids` [n] and `rows` [n, D] in turn, and the length of each pair."""
    value = _bulk(2 * rows.shape[1])
    out = np.empty((len(ids), _ID.whole + value.whole), np.uint8)
    at = _fill(out, 0, _ID, np.ascontiguousarray(ids, "<i8").view(np.uint8).reshape(-1, 8))
    _fill(out, at, value, np.ascontiguousarray(rows, "<f2").view(np.uint8))
    return out.tobytes(), out.shape[1]


def read_rows(sock: socket.socket, counts: Sequence[int], width: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Read the replies to HMGETs of `counts` fields each. Returns the rows [n, width], and which were found [n].

    Raises `UnusualReplyError`, the client library's errors and `OSError`.
    """
    bulk = _bulk(2 * width)
    heads = [b"*%d\r\n" % count for count in counts]
    n = sum(counts)
    head, whole = len(bulk.head), bulk.whole
    expected = sum(map(len, heads)) + n * whole
    data = sock.recv(expected)
    while len(data) < expected:
        if not data.startswith(b"*"):
            if not data:
                raise ValkeyConnectionError("closed by the server")
            raise UnusualReplyError
        first = data[len(heads[0]) : len(heads[0]) + head]
        if not bulk.head.startswith(first) and not first.startswith(_ABSENT[:3]):
            raise UnusualReplyError  # of shorter rows, the expected number of bytes would never arrive
        # The bytes of a row may look like a missing row: the parser decides.
        if (_ABSENT in data or _ERROR in data) and (parsed := _parse(data, heads, bulk)) is not None:
            return _rows(parsed[0], n, width), parsed[1]
        more = sock.recv(expected - len(data))
        if not more:
            raise ValkeyConnectionError("closed by the server")
        data += more
    if len(data) == expected:
        values, at = [], 0
        for array, count in zip(heads, counts, strict=True):
            if not data.startswith(array, at):
                raise UnusualReplyError
            at += len(array)
            values.append(data[at : at + count * whole])
            at += count * whole
        table = np.frombuffer(b"".join(values), np.uint8).reshape(n, whole)
        if (table[:, :head] == np.frombuffer(bulk.head, np.uint8)).all():
            return _rows(table[:, head : -len(_END)].tobytes(), n, width), np.ones(n, np.bool_)
    raise UnusualReplyError


def _rows(values: bytes, n: int, width: int) -> NDArray[np.float16]:
    return np.frombuffer(bytearray(values), "<f2").astype(np.float16, copy=False).reshape(n, width)


def _parse(data: bytes, heads: Sequence[bytes], bulk: _Bulk) -> tuple[bytes, NDArray[np.bool_]] | None:
    """Return the values, zeros for missing ones, and which were found; None while the data is incomplete."""
    values: list[bytes] = []
    found: list[bool] = []
    nothing, at = bytes(bulk.size), 0
    for head in heads:
        if not data.startswith(head, at):
            if len(data) - at < len(head):
                return None
            raise UnusualReplyError
        at += len(head)
        for _ in range(int(head[1:-2])):
            if data.startswith(bulk.head, at):
                end = at + bulk.whole
                values.append(data[at + len(bulk.head) : end - len(_END)])
                found.append(True)
            elif data.startswith(_ABSENT, at):
                end = at + len(_ABSENT)
                values.append(nothing)
                found.append(False)
            elif len(data) - at < len(bulk.head) or len(data) - at < len(_ABSENT):
                return None
            else:
                raise UnusualReplyError
            if end > len(data):
                return None
            at = end
    if at != len(data):
        raise UnusualReplyError
    return b"".join(values), np.array(found, np.bool_)
