"""A closed loop of requests from a process of its own: each of some connections sends its next request when it has its answer.

Raw sockets under one epoll, requests prebuilt as bytes: about 15 µs a request, so that it is never the bottleneck; `measure`
tells how busy it was. `python -m benchmarks.serving.load` reads one `LoadOrder` a line and answers each with a `LoadResult`.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import selectors
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from types import TracebackType

import msgspec
import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.processes import own_environment

__all__ = ["Load", "LoadOrder", "LoadResult", "http_request"]

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_RECEIVE = 1 << 18
_STUCK_S = 30.0


class LoadOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, and for how long."""

    port: int
    """On loopback."""
    requests: str
    """File of a MessagePack list of whole HTTP requests, sent in turn from a random one on."""
    connections: int
    """Open at once, each with one request under way."""
    seconds: float
    """How long requests are sent; those under way are waited for."""
    in_order: bool = False
    """Start with the first, and fail rather than send one twice."""


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    answers: int
    """Requests with status 200."""
    errors: int
    """Other statuses, and connections that broke."""
    seconds: float
    """From the first request to the last answer."""
    p50_ms: float
    """Of the answers; 0 without any."""
    p99_ms: float
    bytes: float
    """Of a body, on average."""
    busy: float
    """Share of the time that this process computed: well below 1, or it was the bottleneck."""
    first_error: str | None
    """The head of the first answer that was none."""

    @property
    def rps(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


def http_request(path: str, body: bytes, content_type: str) -> bytes:
    """A whole POST."""
    kinds = f"Content-Type: {content_type}\r\nAccept: {content_type}"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kinds}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Load:
    """A process that sends requests, pinned to `core`. A context."""

    def __init__(self, core: int, work: Path) -> None:
        self._work, self._files = work, itertools.count()
        command = [sys.executable, "-m", "benchmarks.serving.load", str(core)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=own_environment())

    def file(self, requests: Sequence[bytes]) -> str:
        """A file of requests."""
        path = self._work / f"requests-{next(self._files)}.msgpack"
        path.write_bytes(msgspec.msgpack.encode(requests))
        return str(path)

    def __call__(self, order: LoadOrder) -> LoadResult:
        """Send it. Raises `BenchmarkError` when the process dies, as it does when nothing listens."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("load", "a process that answers", f"exit code {self._process.wait()}")
        return msgspec.json.decode(line, type=LoadResult)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class _Connection:
    """One connection and the answer that is under way on it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_STUCK_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got, self.needed, self.body, self.sent_at = b"", -1, 0, 0.0

    def send(self, request: bytes) -> None:
        self.got, self.needed = b"", -1
        self.sent_at = perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """True when the answer is whole. Raises `ConnectionError`."""
        chunk = self.socket.recv(_RECEIVE)
        if not chunk:
            raise ConnectionError("closed")
        self.got = self.got + chunk if self.got else chunk
        if self.needed < 0:
            end = self.got.find(_HEAD_END)
            if end < 0:
                return False
            length = _LENGTH.search(self.got, 0, end)
            if length is None:
                raise ConnectionError(f"no content-length: {self.got[:end]!r}")
            self.body = int(length[1])
            self.needed = end + len(_HEAD_END) + self.body
        return len(self.got) >= self.needed


def _run(order: LoadOrder) -> LoadResult:
    requests: list[bytes] = msgspec.msgpack.decode(Path(order.requests).read_bytes(), type=list[bytes])
    count = len(requests)
    turn = 0 if order.in_order else random.randrange(count)
    limit = count if order.in_order else 1 << 62
    sent, errors, size, first_error = 0, 0, 0, None
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        connections = [_Connection(order.port) for _ in range(order.connections)]
        busy, started = process_time(), perf_counter()
        until = started + order.seconds
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(requests[(turn + sent) % count])
            sent += 1
        under_way = len(connections)
        while under_way:
            ready = selector.select(_STUCK_S)
            if not ready:
                errors += under_way
                first_error = first_error or f"no answer within {_STUCK_S} s"
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
                if connection.got.startswith(b"HTTP/1.1 200"):
                    latencies.append(now - connection.sent_at)
                    size += connection.body
                else:
                    errors += 1
                    first_error = first_error or connection.got[:300].decode(errors="replace")
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
        sys.stdout.buffer.write(msgspec.json.encode(_run(msgspec.json.decode(line, type=LoadOrder))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
