"""A closed loop of requests from a process of its own: each of some connections sends its next request when it has its answer.

Raw sockets under one epoll, requests prebuilt as bytes: about 15 µs a request, so that it is never the bottleneck;
`LoadResult.busy` shows that. `python -m benchmarks.serving.load` reads one `LoadOrder` a line and answers each with one
`LoadResult`.
"""

from __future__ import annotations

import itertools
import os
import random
import selectors
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time

import msgspec
import numpy as np

from benchmarks.http_connection import STUCK_S, HttpConnection
from benchmarks.processes import OrderedProcess

__all__ = ["Load", "LoadOrder", "LoadResult"]


class LoadOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Order to send requests for a time."""

    port: int
    """Port on the loopback interface."""
    requests: str
    """File of a MessagePack list of whole HTTP requests, sent in turn from a random one on."""
    connections: int
    """Connections open at once, each with one request under way."""
    seconds: float
    """Seconds in which requests are sent; those under way are waited for."""
    in_order: bool = False
    """Whether to start with the first request, and to end rather than send one twice."""


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one order."""

    answers: int
    """Requests with status 200."""
    errors: int
    """Answers with another status, and broken connections."""
    seconds: float
    """From the first request to the last answer."""
    p50_ms: float
    """Latency of the answers; 0 without any."""
    p99_ms: float
    bytes: float
    """Mean length of a body."""
    busy: float
    """Share of the time that this process computed: well below 1, or it was the bottleneck."""
    first_error: str | None
    """The beginning of the first answer with another status, or the first broken connection's error."""

    @property
    def rps(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


class Load(OrderedProcess):
    """A process that sends requests, pinned to `core`. A context."""

    def __init__(self, core: int, work: Path) -> None:
        super().__init__("benchmarks.serving.load", str(core))
        self._work, self._files = work, itertools.count()

    def file(self, requests: Sequence[bytes]) -> str:
        """Write `requests` to a new file and return its path."""
        path = self._work / f"requests-{next(self._files)}.msgpack"
        path.write_bytes(msgspec.msgpack.encode(requests))
        return str(path)

    def __call__(self, order: LoadOrder) -> LoadResult:
        """Send requests as `order` says. Raises `BenchmarkError` when the process dies, as it does when nothing listens."""
        self.send(order)
        return msgspec.json.decode(self.read_line(), type=LoadResult)


def _run(order: LoadOrder) -> LoadResult:
    requests: list[bytes] = msgspec.msgpack.decode(Path(order.requests).read_bytes(), type=list[bytes])
    count = len(requests)
    turn = 0 if order.in_order else random.randrange(count)
    limit = count if order.in_order else 1 << 62
    sent, errors, size, first_error = 0, 0, 0, None
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        connections = [HttpConnection(order.port) for _ in range(order.connections)]
        busy, started = process_time(), perf_counter()
        until = started + order.seconds
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(requests[(turn + sent) % count])
            sent += 1
        under_way = len(connections)
        while under_way:
            ready = selector.select(STUCK_S)
            if not ready:
                errors += under_way
                first_error = first_error or f"no answer within {STUCK_S} s"
                break
            for key, _ in ready:
                connection = key.data
                try:
                    if not connection.receive():
                        continue
                except OSError as error:
                    errors += 1
                    first_error = first_error or str(error)
                    under_way -= 1
                    selector.unregister(connection.socket)
                    continue
                now = perf_counter()
                if connection.answer.startswith(b"HTTP/1.1 200"):
                    latencies.append(now - connection.sent_at)
                    size += connection.body_bytes
                else:
                    errors += 1
                    first_error = first_error or connection.answer[:300].decode(errors="replace")
                if now < until and sent < limit:
                    connection.send(requests[(turn + sent) % count])
                    sent += 1
                else:
                    under_way -= 1
        seconds, busy = perf_counter() - started, process_time() - busy
        for connection in connections:
            connection.socket.close()
    p50, p99 = (float(q) * 1e3 for q in np.percentile(latencies or [0.0], (50, 99)))
    return LoadResult(
        answers=len(latencies),
        errors=errors,
        seconds=seconds,
        p50_ms=p50,
        p99_ms=p99,
        bytes=size / max(1, len(latencies)),
        busy=busy / seconds,
        first_error=first_error,
    )


def _main() -> None:
    os.sched_setaffinity(0, {int(sys.argv[1])})
    for line in sys.stdin.buffer:
        print(msgspec.json.encode(_run(msgspec.json.decode(line, type=LoadOrder))).decode(), flush=True)


if __name__ == "__main__":
    _main()
