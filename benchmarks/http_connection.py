"""Raw HTTP requests and connections of the load generators: as little work as possible for each request."""

from __future__ import annotations

import re
import socket
from time import perf_counter

__all__ = ["STUCK_S", "HttpConnection", "http_request"]

STUCK_S = 30.0
"""Seconds after which a connection that does not move is given up."""
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_RECEIVE = 1 << 18


def http_request(path: str, body: bytes, content_type: str, token: str | None = None) -> bytes:
    """Return a whole POST request, with the `token` of its sender if there is one."""
    types = f"Content-Type: {content_type}\r\nAccept: {content_type}"
    if token is not None:
        types += f"\r\nAuthorization: Bearer {token}"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{types}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class HttpConnection:
    """Keep-alive connection to a port of the loopback interface, with the answer to its latest request."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=STUCK_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = b""
        """Bytes of the answer that were received so far."""
        self.body_bytes = 0
        """Length of the body by the answer's head."""
        self.sent_at = 0.0
        """When the request was sent, by `perf_counter`."""
        self._needed = -1

    def send(self, request: bytes) -> None:
        """Send the next request. Raises `OSError`."""
        self.answer, self._needed = b"", -1
        self.sent_at = perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what has arrived; True when the answer is whole. Raises `OSError` when it never will be."""
        chunk = self.socket.recv(_RECEIVE)
        if not chunk:
            raise ConnectionError("closed")
        self.answer = self.answer + chunk if self.answer else chunk
        if self._needed < 0:
            end = self.answer.find(_HEAD_END)
            if end < 0:
                return False
            length = _LENGTH.search(self.answer, 0, end)
            if length is None:
                raise ConnectionError(f"no content-length: {self.answer[:end]!r}")
            self.body_bytes = int(length[1])
            self._needed = end + len(_HEAD_END) + self.body_bytes
        return len(self.answer) >= self._needed

    @property
    def head(self) -> bytes:
        """Status line and headers of a whole answer, each with its line end."""
        return self.answer[: self._needed - self.body_bytes - 2]

    @property
    def body(self) -> bytes:
        """Body of a whole answer, with anything that was sent after it."""
        return self.answer[self._needed - self.body_bytes :]
