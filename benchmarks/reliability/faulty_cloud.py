"""A small cloud of the contract that can be told to fail: the other end for a device's bad days."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Event, Lock, Thread
from typing import Any, Literal, get_args

from pocketrank.cloud.streams.feedback_log import FeedbackLog
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError, FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest

__all__ = ["FAULTS", "Fault", "FaultyCloud"]

Fault = Literal["away", "slow", "garbage", "errors", "cut"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
"""No connection; an answer after the device has given up; bytes that are no answer; 500 for every other call; a connection that
ends half-way through the answer, after the cloud has done its part."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a device that hangs up, or is killed
            super().handle_error(request, client_address)


class FaultyCloud:
    """Pages by `make_page`, feedback once an event id: in memory or in `log`. Its state may be read and set as it serves."""

    def __init__(
        self, make_page: Callable[[PageRequest], Page] | None = None, slow_s: float = 1.0, log: FeedbackLog | None = None
    ) -> None:
        self._make_page, self._slow_s, self._log = make_page, slow_s, log
        self.fault: Fault | None = None
        self.refuses: Callable[[FeedbackEvent], bool] = lambda event: False
        """Events for which a whole batch is answered by 422."""
        self.calls: Counter[str] = Counter()
        """By what became of them."""
        self.events: dict[str, FeedbackEvent] = {}
        """What was applied, by event id, where there is no log."""
        self._numbers, self._lock, self._over = count(), Lock(), Event()

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[str]:
        """Serve on a port of the loopback interface, 0: a free one; the value is the base URL."""
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two writes

            def do_POST(self) -> None:
                cloud._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = _Server(("127.0.0.1", port), Handler)
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
        """Apply what is new; how many that were."""
        if self._log is not None:
            return len(self._log.append(events).accepted)
        with self._lock:
            new = {event.event_id: event for event in events if event.event_id not in self.events}
            self.events.update(new)
            return len(new)
