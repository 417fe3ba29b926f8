"""A small cloud of the contract that can be told to fail: the other end for a device's bad days."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Event, Lock, Thread
from typing import Any, Literal, get_args

from device.codec import from_msgpack, to_msgpack
from device.contract import ContractError, FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest

__all__ = ["FAULTS", "Fault", "FaultyCloud"]

Fault = Literal["away", "slow", "garbage", "errors", "cut"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
"""No connection; an answer after the device has given up; bytes that are no answer; 500 for every other call; a connection that
ends half-way through the answer, after the cloud has done its part."""


class FaultyCloud:
    """Pages by `make_page`, feedback once an event id. Its state may be read and set while it serves."""

    def __init__(self, make_page: Callable[[PageRequest], Page], slow_s: float = 1.0) -> None:
        self._make_page, self._slow_s = make_page, slow_s
        self.fault: Fault | None = None
        self.refuses: Callable[[FeedbackEvent], bool] = lambda event: False
        """Events for which a whole batch is answered by 422."""
        self.calls: Counter[str] = Counter()
        """By what became of them."""
        self.events: Counter[str] = Counter()
        """How often each event id was applied."""
        self._numbers, self._lock, self._over = count(), Lock(), Event()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a free port of the loopback interface; the value is the base URL."""
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two writes

            def do_POST(self) -> None:
                cloud._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            self._over.set()
            server.shutdown()
            server.server_close()
            thread.join()

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
        try:
            call.send_response(status)
            call.send_header("Content-Length", str(len(answer)))
            call.end_headers()
            call.wfile.write(answer[: len(answer) // 2] if fault == "cut" else answer)
        except OSError:
            pass  # the device has hung up

    def _handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            if path == "/v1/page":
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
        """Apply what is new; how many that were."""
        with self._lock:
            new = {event.event_id for event in events} - self.events.keys()
            self.events.update(new)
            return len(new)
