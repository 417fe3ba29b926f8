"""A TCP connection to the first address of a host that answers (RFC 8305, "Happy Eyeballs").

A name often has several addresses, and the first may lead nowhere: IPv6 that is broken in the device's network, or a machine
that is down. So the next address is tried while the one before has not answered yet, and all of it ends at the call's deadline.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import threading
import time
from itertools import chain, zip_longest
from typing import Any

__all__ = ["connect"]

_ATTEMPT_S = 0.25
"""Time that an address has to answer before the next is tried, too. RFC 8305 (8) recommends 250 ms."""

_Address = tuple[Any, ...]
"""What `socket.getaddrinfo` returns for one address: family, type, protocol, canonical name, address."""


def connect(host: str, port: int, deadline: float) -> socket.socket:
    """Return a connection to `host`, made before `deadline`, in seconds of the monotonic clock. Its timeout is the time left.

    Raises OSError: the error of the address that failed last, or TimeoutError.
    """
    waiting = _interleaved(_resolve(host, port, deadline))
    error: OSError | None = None
    with selectors.DefaultSelector() as attempts:
        try:
            next_at = time.monotonic()
            while waiting or attempts.get_map():
                now = time.monotonic()
                if now >= deadline:
                    raise TimeoutError("timed out: no address answered in time")
                if waiting and (now >= next_at or not attempts.get_map()):
                    try:
                        attempts.register(_begin(waiting.pop(0)), selectors.EVENT_WRITE)
                        next_at = now + _ATTEMPT_S
                    except OSError as err:  # no route, or no such family on this device
                        error = err
                    continue
                until = min(deadline, next_at) if waiting else deadline
                for key, _ in attempts.select(max(0.0, until - now)):
                    sock: socket.socket = key.fileobj  # type: ignore[assignment]
                    attempts.unregister(sock)
                    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        sock.close()
                        error, next_at = OSError(code, os.strerror(code)), now  # the next need not wait
                        continue
                    sock.settimeout(max(0.001, deadline - time.monotonic()))
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return sock
        finally:
            for key in list(attempts.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
    raise error or OSError("no address")


def _begin(address: _Address) -> socket.socket:
    """Begin to connect to the address."""
    family, kind, protocol, _, target = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError, InterruptedError):  # it becomes writable once it is connected, or has failed
            sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def _interleaved(addresses: list[_Address]) -> list[_Address]:
    """Return the addresses with their families in turn, beginning with that of the first (RFC 8305, 4)."""
    families: dict[int, list[_Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*families.values())) if address is not None]


def _resolve(host: str, port: int, deadline: float) -> list[_Address]:
    """Return the addresses of a host. The resolver has no timeout of its own, so it is waited for in another thread."""
    answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, name="pocketrank-resolve", daemon=True).start()
    try:
        found = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise TimeoutError(f"timed out: no address of {host} in time") from None
    if isinstance(found, Exception):
        raise found
    return found
