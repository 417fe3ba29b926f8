"""HTTP servers in a thread, for devices that hang up or are killed in the middle of a call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

__all__ = ["LoopbackHandler", "serve_loopback"]


class LoopbackHandler(BaseHTTPRequestHandler):
    """Base of handlers: connections are kept alive, and no request is logged."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a device that hangs up, or is killed
            super().handle_error(request, client_address)


@contextmanager
def serve_loopback(handler: type[LoopbackHandler], port: int = 0) -> Iterator[str]:
    """Serve on a port of the loopback interface, a free one for 0, while the block runs. The value is the base URL."""
    server = _Server(("127.0.0.1", port), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
