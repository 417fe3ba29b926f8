"""A proxy in front of a store or an index, which can fail in the ways of networks and servers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import select
from threading import Lock, Thread
from typing import Literal

__all__ = ["FaultyProxy", "Fault", "faulty_proxy"]

Fault = Literal["", "silent", "garbage", "refusing", "cut"]
"""Nothing; accepts and says nothing; answers nonsense; refuses connections; closes each connection that it has accepted."""
_GARBAGE = b"\xff\x00garbage\r\n" * 100
_CHUNK = 1 << 16
_TICK_S = 0.05


class FaultyProxy:
    """Proxy on a port of its own for a port of the loopback interface."""

    def __init__(self, port: int) -> None:
        self._target, self.fault = port, ""
        self._open = set[socket.socket]()
        self._lock = Lock()
        self._ended = False
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._server.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def fail(self, fault: Fault) -> None:
        """Fail from now on, and end the connections of before unless they may stay silent. An empty fault ends the failure."""
        self.fault = fault
        if fault == "refusing":
            self._server.close()
        elif self._server.fileno() < 0:
            self._server = socket.create_server(("127.0.0.1", self.port), backlog=128)
            Thread(target=self._accept, daemon=True).start()
        if fault != "silent":
            with self._lock:
                ending = list(self._open)
            for sock in ending:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        server = self._server
        with suppress(OSError, ValueError):
            while not self._ended:
                if not select([server], [], [], _TICK_S)[0]:
                    continue
                sock, _ = server.accept()
                Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            if self.fault == "cut":
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server, self._counted(client, server):
                while not self._ended:
                    for sock in select([client, server], [], [], _TICK_S)[0]:
                        if not (data := sock.recv(_CHUNK)):
                            return
                        if self.fault == "garbage":
                            client.sendall(_GARBAGE)
                        elif not self.fault:
                            (server if sock is client else client).sendall(data)

    @contextmanager
    def _counted(self, *sockets: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.update(sockets)
        try:
            yield
        finally:
            with self._lock:
                self._open.difference_update(sockets)

    def close(self) -> None:
        """End all connections."""
        self.fail("refusing")
        self._ended = True


@contextmanager
def faulty_proxy(port: int) -> Iterator[FaultyProxy]:
    """Run a proxy for a port while the block runs."""
    proxy = FaultyProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
