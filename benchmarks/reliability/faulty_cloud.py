"""A small cloud that keeps the contract until a fault is set: the other end of a device in `benchmarks.reliability.faults`."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import count
from threading import Event, Lock
from typing import Literal, get_args

from benchmarks.reliability.loopback import LoopbackHandler, serve_loopback
from pocketrank.cloud.streams.feedback_log import FeedbackLog
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError, FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest

__all__ = ["FAULTS", "Fault", "FaultyCloud"]

Fault = Literal["away", "slow", "garbage", "errors", "cut"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
"""In this order: no connection; an answer after the device's timeout; bytes that are not an answer; 500 for every other call; a
connection that ends half-way through the answer, after the cloud has applied the request."""


class FaultyCloud:
    """Cloud that answers pages from `make_page` and applies each event id once, in memory or in `log`.

    Its state may be read and set while it serves.
    """

    def __init__(
        self, make_page: Callable[[PageRequest], Page] | None = None, slow_s: float = 1.0, log: FeedbackLog | None = None
    ) -> None:
        self._make_page, self._slow_s, self._log = make_page, slow_s, log
        self.fault: Fault | None = None
        self.refuses: Callable[[FeedbackEvent], bool] = lambda event: False
        """Whether an event makes the answer to its whole batch 422."""
        self.calls: Counter[str] = Counter()
        """Calls by their answer: a status, or a fault."""
        self.events: dict[str, FeedbackEvent] = {}
        """Applied events by their id, where there is no log."""
        self._numbers, self._lock, self._over = count(), Lock(), Event()

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[str]:
        """Serve on a port of the loopback interface, a free one for 0, while the block runs. The value is the base URL."""
        cloud = self

        class Handler(LoopbackHandler):
            def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
                cloud._answer(self)

        with serve_loopback(Handler, port) as url:
            try:
                yield url
            finally:
                self._over.set()  # slow answers are not waited for

    def _answer(self, call: BaseHTTPRequestHandler) -> None:
        fault, number = self.fault, next(self._numbers)
        body = call.rfile.read(int(call.headers.get("Content-Length", 0)))
        call.close_connection = fault in ("away", "garbage", "cut")
        if fault == "away":
            self.calls["away"] += 1
            call.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == "errors" and number % 2:
            status, answer = 500, b"broken"
        else:
            status, answer = self._handle(call.path, body)
        if fault == "slow":
            self._over.wait(self._slow_s)
        elif fault == "garbage":
            status, answer = 200, answer[::-1] if number % 2 else b"<html>Welcome to our hotel</html>"
        self.calls[str(status) if fault in (None, "errors") else fault] += 1
        call.send_response(status)
        call.send_header("Content-Length", str(len(answer)))
        call.end_headers()
        call.wfile.write(answer[: len(answer) // 2] if fault == "cut" else answer)

    def _handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            if path == "/v1/page" and self._make_page is not None:
                request = from_msgpack(body, PageRequest)
                self._apply(request.feedback)
                return 200, to_msgpack(self._make_page(request))
            if path == "/v1/feedback":
                events = from_msgpack(body, FeedbackBatch).events
                if any(map(self.refuses, events)):
                    return 422, b"an event that is not allowed"
                new = self._apply(events)
                return 200, to_msgpack(FeedbackReceipt(accepted=new, duplicates=len(events) - new))
        except ContractError as error:
            return 400, str(error).encode()
        return 404, b"nothing here"

    def _apply(self, events: tuple[FeedbackEvent, ...]) -> int:
        """Apply the new events and return their number."""
        if self._log is not None:
            return len(self._log.append(events).accepted)
        with self._lock:
            new = {event.event_id: event for event in events if event.event_id not in self.events}
            self.events.update(new)
            return len(new)
