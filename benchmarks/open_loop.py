"""An open loop of page requests from a process of its own: they come when they come, whether or not the server has answered.

Arrivals are a Poisson process whose rate changes by phase. Each takes a free connection, and one that finds none, because as
many requests are under way as there may be, is never sent and counted as such. What is told of each is kept by arrival, and
latencies count from it, so that a server that stalls does not hide what it made others wait.
`python -m benchmarks.open_loop` reads one `OpenOrder` a line and answers each with a line when it is done.
"""

from __future__ import annotations

import os
import random
import re
import selectors
import socket
import subprocess
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.serving.load import http_request
from device.codec import from_msgpack, read_page, to_msgpack
from device.contract import ContractError, Page, PageRequest

__all__ = ["DROPPED", "MALFORMED", "UNSENT", "OpenLoad", "OpenOrder", "OpenPhase", "OpenResult"]

UNSENT, DROPPED, MALFORMED = 0, 1, 2
"""What stands for a status: never sent, for want of a connection; no whole answer came; an answer that is none."""

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+\r\n", re.IGNORECASE)
_RECEIVE = 1 << 18
_IDLE_S = 2.0  # uvicorn closes after 5 s what does not ask; who asks just then would have to ask again
_ROOT = Path(__file__).resolve().parent.parent


class OpenPhase(msgspec.Struct, frozen=True):
    """A time of one rate."""

    rps: float
    """Arrivals a second, on average."""
    seconds: float


class OpenOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to send."""

    port: int
    """On loopback."""
    requests: str
    """File of a MessagePack list of `PageRequest`, sent in turn; feedback gets new event ids each time."""
    phases: tuple[OpenPhase, ...]
    """One after the other, without a pause."""
    result: str
    """File for what came back."""
    connections: int = 512
    """Most requests under way."""
    patience_s: float = 10.0
    """A request that is not answered by then is dropped."""
    seed: int = 0
    """Of the arrivals, and the beginning of event ids."""


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    reasons: tuple[tuple[str, ...], ...]
    first_error: str | None
    busy: float
    late_p99_ms: float


@dataclass(frozen=True)
class OpenResult:
    """What came back, n requests by their arrival."""

    at: NDArray[np.float64]
    """[n] seconds after the start at which it arrived"""
    status: NDArray[np.int16]
    """[n] of HTTP, or `UNSENT`, `DROPPED`, `MALFORMED`"""
    ms: NDArray[np.float32]
    """[n] from the arrival to the whole answer; NaN where none came"""
    price: NDArray[np.float32]
    """[n] the page's compute price; NaN where there is no page"""
    reason: NDArray[np.int16]
    """[n] place in `reasons`; -1 where there is no page"""
    vectors: NDArray[np.int8]
    """[n] 1 where the page has vectors"""
    retry_after: NDArray[np.int8]
    """[n] 1 where the answer says when to come again"""
    reasons: tuple[tuple[str, ...], ...]
    """What pages said of themselves in `degraded`."""
    first_error: str | None
    """The beginning of the first answer that was neither 200 nor 429."""
    busy: float
    """Share of the time that the process computed: well below 1, or it was the bottleneck."""
    late_p99_ms: float
    """How late requests were sent."""

    @property
    def whole(self) -> NDArray[np.bool_]:
        """[n] pages that nothing was left out of."""
        whole = [place for place, reasons in enumerate(self.reasons) if not reasons]
        found: NDArray[np.bool_] = (self.status == 200) & np.isin(self.reason, whole)
        return found

    def between(self, since: float, until: float) -> NDArray[np.bool_]:
        """[n] those that arrived in this time."""
        return (self.at >= since) & (self.at < until)


class OpenLoad:
    """The process. A context. `core` None leaves it to the system."""

    def __init__(self, work: Path, core: int | None = None) -> None:
        self._work = work
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "benchmarks.open_loop", *([] if core is None else [str(core)])]
        pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": path}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)

    def begin(self, port: int, requests: Sequence[PageRequest], phases: Sequence[OpenPhase], **more: Any) -> None:
        """Begin to send; `more` are fields of `OpenOrder`."""
        assert self._process.stdin is not None
        file = self._work / "open-requests.msgpack"
        file.write_bytes(msgspec.msgpack.encode(list(requests)))
        result = str(self._work / "open-result.npz")
        order = OpenOrder(port=port, requests=str(file), phases=tuple(phases), result=result, **more)
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"begun\n":
            raise BenchmarkError("the open loop", "a process that sends", f"exit code {self._process.wait()}")

    def wait(self) -> OpenResult:
        """What came back, once all phases are over. Raises `BenchmarkError` when the process dies."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the open loop", "a process that answers", f"exit code {self._process.wait()}")
        done = msgspec.json.decode(line, type=_Done)
        with np.load(self._work / "open-result.npz") as columns:
            return OpenResult(**dict(columns), **msgspec.structs.asdict(done))

    def __enter__(self) -> OpenLoad:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got, self.number, self.request_id, self.since = b"", -1, "", 0.0

    def receive(self) -> tuple[bytes, bytes] | None:
        """Head and body, once they are whole. Raises OSError when they never will be."""
        chunk = self.socket.recv(_RECEIVE)
        if not chunk:
            raise ConnectionError("closed")
        self.got += chunk
        end = self.got.find(_HEAD_END)
        if end < 0:
            return None
        head, body = self.got[: end + 2], self.got[end + len(_HEAD_END) :]
        length = _LENGTH.search(head)
        if length is None:
            raise ConnectionError("an answer without its length")
        return (head, body) if len(body) >= int(length[1]) else None


class _Loop:
    def __init__(self, order: OpenOrder) -> None:
        self._order, self._rng = order, random.Random(order.seed)
        self._requests = msgspec.msgpack.decode(Path(order.requests).read_bytes(), type=list[PageRequest])
        self._bodies = [None if request.feedback else _http(request) for request in self._requests]
        self._selector = selectors.DefaultSelector()
        self._free: list[_Connection] = []
        self._busy: dict[int, _Connection] = {}
        self._reasons: dict[tuple[str, ...], int] = {(): 0}
        self._first_error: str | None = None
        self._at, self._late = array("d"), array("f")
        self._status, self._reason = array("h"), array("h")
        self._ms, self._price = array("f"), array("f")
        self._vectors, self._retry_after = array("b"), array("b")

    def run(self) -> _Done:
        busy, self._began = process_time(), perf_counter()
        arrivals = self._arrivals()
        due: float | None = next(arrivals, None)
        while due is not None or self._busy:
            now = perf_counter() - self._began
            while due is not None and due <= now:
                self._arrive(due)
                due = next(arrivals, None)
                now = perf_counter() - self._began
            for key, _ in self._selector.select(1.0 if due is None else max(0.0, due - now)):
                self._readable(key.data)
            self._tidy()
        seconds, busy = perf_counter() - self._began, process_time() - busy
        for connection in self._free:
            connection.socket.close()
        np.savez(
            self._order.result,
            at=np.array(self._at),
            status=np.array(self._status),
            ms=np.array(self._ms),
            price=np.array(self._price),
            reason=np.array(self._reason),
            vectors=np.array(self._vectors),
            retry_after=np.array(self._retry_after),
        )
        late = 1e3 * float(np.percentile(self._late, 99)) if self._late else 0.0
        return _Done(reasons=tuple(self._reasons), first_error=self._first_error, busy=busy / seconds, late_p99_ms=late)

    def _arrivals(self) -> Iterator[float]:
        start = 0.0
        for phase in self._order.phases:
            at = start
            while phase.rps > 0 and (at := at + self._rng.expovariate(phase.rps)) < start + phase.seconds:
                yield at
            start += phase.seconds

    def _arrive(self, at: float) -> None:
        number = len(self._at)
        self._at.append(at)
        for column, value in ((self._status, UNSENT), (self._reason, -1), (self._vectors, 0), (self._retry_after, 0)):
            column.append(value)
        for floats in (self._ms, self._price):
            floats.append(float("nan"))
        if len(self._busy) >= self._order.connections:
            return
        place = number % len(self._requests)
        request, data = self._requests[place], self._bodies[place]
        if data is None:
            ids = (f"{self._order.seed}-{number}/{i}" for i in range(len(request.feedback)))
            events = tuple(msgspec.structs.replace(e, event_id=id_) for e, id_ in zip(request.feedback, ids, strict=True))
            data = _http(msgspec.structs.replace(request, feedback=events))
        try:
            if self._free:
                connection = self._free.pop()
            else:
                connection = _Connection(self._order.port)
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.got, connection.number, connection.request_id = b"", number, request.request_id
            connection.since = perf_counter()
            self._late.append(connection.since - self._began - at)
            self._busy[number] = connection
            connection.socket.sendall(data)
        except OSError as error:
            self._status[number] = DROPPED
            self._err(str(error))
            if number in self._busy:
                self._close(self._busy.pop(number))

    def _readable(self, connection: _Connection) -> None:
        number = connection.number
        try:
            answer = connection.receive()
        except OSError as error:
            if number >= 0:  # one at rest may be closed
                self._status[number] = DROPPED
                self._err(str(error))
                del self._busy[number]
            else:
                self._free.remove(connection)
            self._close(connection)
            return
        if answer is None or number < 0:
            return
        now = perf_counter()
        del self._busy[number]
        connection.number, connection.since = -1, now
        self._free.append(connection)
        self._ms[number] = 1e3 * (now - self._began - self._at[number])
        self._status[number] = self._read(number, connection.request_id, *answer)

    def _read(self, number: int, request_id: str, head: bytes, body: bytes) -> int:
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
            if page.request_id != request_id or not len(columns.item_id):
                self._err("another's page, or an empty one")
                return MALFORMED
            self._price[number], self._vectors[number] = page.compute_price, page.split_version is not None
            self._reason[number] = self._reasons.setdefault(page.degraded, len(self._reasons))
        else:
            self._retry_after[number] = _RETRY_AFTER.search(head) is not None
            if status != 429:
                self._err((head + body)[:300].decode(errors="replace"))
        return status

    def _err(self, what: str) -> None:
        self._first_error = self._first_error or what

    def _tidy(self) -> None:
        now = perf_counter()
        while self._free and now - self._free[0].since > _IDLE_S:
            self._close(self._free.pop(0))
        for number, connection in list(self._busy.items())[:1]:  # the oldest is first
            if now - connection.since > self._order.patience_s:
                self._err(f"no answer within {self._order.patience_s:g} s")
                self._status[number] = DROPPED
                del self._busy[number]
                self._close(connection)

    def _close(self, connection: _Connection) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()


def _http(request: PageRequest) -> bytes:
    return http_request("/v1/page", to_msgpack(request), "application/msgpack")


def _main(arguments: Sequence[str]) -> None:
    if arguments:
        os.sched_setaffinity(0, {int(arguments[0])})
    for line in sys.stdin.buffer:
        loop = _Loop(msgspec.json.decode(line, type=OpenOrder))
        sys.stdout.buffer.write(b"begun\n")
        sys.stdout.buffer.flush()
        sys.stdout.buffer.write(msgspec.json.encode(loop.run()) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main(sys.argv[1:])
