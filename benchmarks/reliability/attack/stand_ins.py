"""Stand-ins for servers that a machine of tests does not have: a Qdrant, and a name server that can fall silent."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from benchmarks.reliability.loopback import LoopbackHandler, serve_loopback

__all__ = ["NameServer", "name_server", "qdrant"]

_CONFIG: dict[str, Any] = {
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "flush_interval_sec": 5,
    },
}
_FOUND = 300
_HEADER, _TYPE_A = 12, 1


@contextmanager
def qdrant(items: int, width: int) -> Iterator[int]:
    """Serve what Qdrant's client asks of a collection that holds `items` vectors; a search finds the first of them. The value
    is the port.
    """

    class Handler(LoopbackHandler):
        def do_GET(self) -> None:  # noqa: N802
            about = {
                "status": "green",
                "optimizer_status": "ok",
                "segments_count": 1,
                "payload_schema": {},
                "config": {"params": {"vectors": {"size": width, "distance": "Dot"}}, **_CONFIG},
            }
            self._answer({"exists": True} if self.path.endswith("/exists") else about)

        def do_POST(self) -> None:  # noqa: N802
            points = [{"id": 1 + i, "version": 1, "score": 1 - i / _FOUND} for i in range(min(items, _FOUND))]
            self._answer({"count": items} if self.path.endswith("/count") else {"points": points})

        def _answer(self, result: object) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serve_loopback(Handler) as url:
        port = urlsplit(url).port
        assert port is not None
        yield port


class NameServer:
    """Name server on a loopback address that answers each name with 127.0.0.1, unless it is dead."""

    def __init__(self) -> None:
        self.address, self.is_dead, self.asked = "127.0.0.53", False, 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.address, 53))
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                query, client = self._socket.recvfrom(512)
                if not query:
                    return  # `close`
                self.asked += 1
                if not self.is_dead:
                    self._socket.sendto(_answer(query), client)

    def close(self) -> None:
        """Answer nothing any more."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (self.address, 53))
        self._thread.join()
        self._socket.close()


@contextmanager
def name_server() -> Iterator[NameServer]:
    """Run a name server while the block runs."""
    server = NameServer()
    try:
        yield server
    finally:
        server.close()


def _answer(query: bytes) -> bytes:
    """Return the answer to a query (RFC 1035, 4.1): one address for a question of type A, none for any other."""
    end = query.index(b"\0", _HEADER) + 5
    question = query[_HEADER:end]
    has_address = int.from_bytes(question[-4:-2], "big") == _TYPE_A
    head = query[:2] + b"\x85\x80" + b"\0\x01" + (b"\0\x01" if has_address else b"\0\0") + bytes(4)
    record = b"\xc0\x0c\0\x01\0\x01" + (0).to_bytes(4, "big") + b"\0\x04" + socket.inet_aton("127.0.0.1")
    return head + question + (record if has_address else b"")
