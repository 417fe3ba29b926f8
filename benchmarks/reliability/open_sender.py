"""The process of an open loop: `python -m benchmarks.reliability.open_sender [CORE]`.

It reads one `OpenOrder` a line and answers each with `begun` and, when it is done, the fields of `OpenResult` that are no
columns, as JSON. Raw sockets under one epoll; pages are decoded in full, so that a broken one is counted.
"""

from __future__ import annotations

import os
import random
import re
import selectors
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import msgspec
import numpy as np

from benchmarks.http_connection import HttpConnection, http_request
from benchmarks.reliability.open_loop import DROPPED, MALFORMED, UNSENT, OpenOrder
from pocketrank.device.codec import from_msgpack, read_page, to_msgpack
from pocketrank.device.contract import ContractError, Page, PageRequest

__all__ = ["main"]

_RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+\r\n", re.IGNORECASE)
_IDLE_S = 2.0  # uvicorn closes a connection after 5 s without a request; one that is sent just then would be lost
_NAN = float("nan")
_COLUMNS: dict[str, tuple[str, float]] = {
    "status": ("i2", UNSENT),
    "ms": ("f4", _NAN),
    "price": ("f4", _NAN),
    "reason": ("i2", -1),
    "vectors": ("i1", 0),
    "retry_after": ("i1", 0),
}
"""Columns of `OpenResult` beside `at`: the type of each, and the value that stands there until an answer arrives."""


class _Connection(HttpConnection):
    """A connection, and the request that is under way on it."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.number, self.request_id = -1, ""
        """Place of the request among the arrivals, below 0 at rest; and its id."""
        self.idle_since = 0.0


class _Loop:
    def __init__(self, order: OpenOrder) -> None:
        self._order, self._rng = order, random.Random(order.seed)
        self._requests = msgspec.msgpack.decode(Path(order.requests).read_bytes(), type=list[PageRequest])
        self._tokens = order.tokens or (None,) * len(self._requests)
        self._bodies = [
            None if request.feedback else _http(request, token)
            for request, token in zip(self._requests, self._tokens, strict=True)
        ]
        self._selector = selectors.DefaultSelector()
        self._free: list[_Connection] = []
        self._busy: dict[int, _Connection] = {}
        self._reasons: dict[tuple[str, ...], int] = {(): 0}
        self._first_error: str | None = None
        self._late: list[float] = []
        self._at = list(self._arrivals())
        self._columns: dict[str, Any] = {name: np.full(len(self._at), value, kind) for name, (kind, value) in _COLUMNS.items()}

    def run(self) -> dict[str, Any]:
        busy, self._began = process_time(), perf_counter()
        number, stop = 0, Path(self._order.stop) if self._order.stop else None
        while number < len(self._at) or self._busy:
            if stop is not None and stop.exists():
                number = len(self._at)
            now = perf_counter() - self._began
            while number < len(self._at) and self._at[number] <= now:
                self._arrive(number)
                number += 1
                now = perf_counter() - self._began
            for key, _ in self._selector.select(max(0.0, self._at[number] - now) if number < len(self._at) else 1.0):
                self._readable(key.data)
            self._tidy()
        seconds, busy = perf_counter() - self._began, process_time() - busy
        for connection in self._free:
            connection.socket.close()
        np.savez(self._order.result, at=np.array(self._at), **self._columns)
        late = 1e3 * float(np.percentile(self._late, 99)) if self._late else 0.0
        reasons = tuple(self._reasons)
        return {"reasons": reasons, "first_error": self._first_error, "busy": busy / seconds, "late_p99_ms": late}

    def _arrivals(self) -> Iterator[float]:
        start = 0.0
        for phase in self._order.phases:
            at = start
            while phase.rps > 0 and (at := at + self._rng.expovariate(phase.rps)) < start + phase.seconds:
                yield at
            start += phase.seconds

    def _arrive(self, number: int) -> None:
        """Send the request that arrives now if a connection is free or may be opened."""
        if len(self._busy) >= self._order.connections:
            return
        place = number % len(self._requests)
        request, data = self._requests[place], self._bodies[place]
        if data is None:
            ids = (f"{self._order.seed}-{number}/{i}" for i in range(len(request.feedback)))
            events = tuple(msgspec.structs.replace(e, event_id=id_) for e, id_ in zip(request.feedback, ids, strict=True))
            data = _http(msgspec.structs.replace(request, feedback=events), self._tokens[place])
        try:
            if self._free:
                connection = self._free.pop()
            else:
                connection = _Connection(self._order.port)
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.number, connection.request_id = number, request.request_id
            self._late.append(perf_counter() - self._began - self._at[number])
            self._busy[number] = connection
            connection.send(data)
        except OSError as error:
            self._columns["status"][number] = DROPPED
            self._err(str(error))
            if number in self._busy:
                self._close(self._busy.pop(number))

    def _readable(self, connection: _Connection) -> None:
        number = connection.number
        try:
            is_whole = connection.receive()
        except OSError as error:
            if number >= 0:  # the server may close an idle connection
                self._columns["status"][number] = DROPPED
                self._err(str(error))
                del self._busy[number]
            else:
                self._free.remove(connection)
            self._close(connection)
            return
        if not is_whole or number < 0:
            return
        now = perf_counter()
        del self._busy[number]
        connection.number, connection.idle_since = -1, now
        self._free.append(connection)
        self._columns["ms"][number] = 1e3 * (now - self._began - self._at[number])
        self._columns["status"][number] = self._read(number, connection)

    def _read(self, number: int, connection: _Connection) -> int:
        """Record what the answer to request `number` says and return its status."""
        head, body = connection.head, connection.body
        try:
            status = int(head.split(b" ", 2)[1])
        except (IndexError, ValueError):
            status = MALFORMED
        if status == 200:
            try:
                page = from_msgpack(body, Page)
                columns = read_page(page)
            except ContractError as error:
                self._err(str(error))
                return MALFORMED
            if page.request_id != connection.request_id or not len(columns.item_id):
                self._err("another's page, or an empty one")
                return MALFORMED
            self._columns["price"][number] = page.compute_price
            self._columns["vectors"][number] = page.split_version is not None
            self._columns["reason"][number] = self._reasons.setdefault(page.degraded, len(self._reasons))
        else:
            self._columns["retry_after"][number] = _RETRY_AFTER.search(head) is not None
            if status != 429:
                self._err((head + body)[:300].decode(errors="replace"))
        return status

    def _err(self, what: str) -> None:
        self._first_error = self._first_error or what

    def _tidy(self) -> None:
        now = perf_counter()
        while self._free and now - self._free[0].idle_since > _IDLE_S:
            self._close(self._free.pop(0))
        for number, connection in list(self._busy.items()):  # the oldest is first
            if now - connection.sent_at <= self._order.patience_s:
                break
            self._err(f"no answer within {self._order.patience_s:g} s")
            self._columns["status"][number] = DROPPED
            del self._busy[number]
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()


def _http(request: PageRequest, token: str | None) -> bytes:
    return http_request("/v1/page", to_msgpack(request), "application/msgpack", token)


def main(arguments: Sequence[str]) -> None:
    """Carry out the orders from standard input, one after the other."""
    if arguments:
        os.sched_setaffinity(0, {int(arguments[0])})
    for line in sys.stdin.buffer:
        loop = _Loop(msgspec.json.decode(line, type=OpenOrder))
        print("begun", flush=True)
        print(msgspec.json.encode(loop.run()).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
