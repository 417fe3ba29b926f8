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

__all__ = ["Address", "connect"]

_ATTEMPT_S, _ATTEMPT_MIN_S = 0.25, 0.01
"""Time that an address has to answer before the next is tried, too, and the least when there are many: RFC 8305 (8)."""
_RESOLVE_S = 0.05
"""Time that the look-up of one family waits for that of the other. RFC 8305 (8) recommends 50 ms."""
_ADDRESSES_MAX = 64
"""Addresses of a name that are tried."""

Address = tuple[Any, ...]
"""What `socket.getaddrinfo` returns for one address: family, type, protocol, canonical name, address."""


def connect(host: str, port: int, deadline: float, avoided: Address | None = None) -> tuple[socket.socket, Address]:
    """Return a connection to `host` and its address, made before `deadline`, in seconds of the monotonic clock.

    The connection's timeout is the time left. An address that is to be `avoided` is tried last. All are tried within the first
    half of the time. Raises OSError: the error of the address that failed last, or TimeoutError.
    """
    waiting = _interleaved(_resolve(host, port, deadline))[:_ADDRESSES_MAX]
    waiting.sort(key=lambda address: address == avoided)
    error: OSError | None = None
    with selectors.DefaultSelector() as attempts:
        try:
            next_at = time.monotonic()
            attempt_s = max(_ATTEMPT_MIN_S, min(_ATTEMPT_S, (deadline - next_at) / 2 / max(1, len(waiting))))
            while waiting or attempts.get_map():
                now = time.monotonic()
                if now >= deadline:
                    raise TimeoutError("timed out: no address answered in time")
                if waiting and (now >= next_at or not attempts.get_map()):
                    try:
                        address = waiting.pop(0)
                        attempts.register(_begin(address), selectors.EVENT_WRITE, address)
                        next_at = now + attempt_s
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
                    return sock, key.data
        finally:
            for key in list(attempts.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
    raise error or OSError("no address")


def _begin(address: Address) -> socket.socket:
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


def _interleaved(addresses: list[Address]) -> list[Address]:
    """Return the addresses with their families in turn, beginning with that of the first (RFC 8305, 4)."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*families.values())) if address is not None]


def _resolve(host: str, port: int, deadline: float) -> list[Address]:
    """Return the addresses of a host, those of IPv6 first.

    The resolver has no timeout of its own, so it is waited for in other threads. There are name servers that never answer for
    IPv6, so each family is looked up by itself (RFC 8305, 3).
    """
    answers: queue.SimpleQueue[list[Address] | OSError] = queue.SimpleQueue()

    def ask(family: int) -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        except Exception as error:  # also for a name that cannot be encoded
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    families = (socket.AF_INET6, socket.AF_INET)
    for family in families:
        threading.Thread(target=ask, args=(family,), name="pocketrank-resolve", daemon=True).start()
    found: dict[Address, None] = {}
    error: OSError | None = None
    for _ in families:
        try:
            answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            error = TimeoutError(f"timed out: no address of {host} in time")
            break
        if isinstance(answer, OSError):
            error = answer
        else:
            found |= dict.fromkeys(answer)
            deadline = min(deadline, time.monotonic() + _RESOLVE_S)
    if found:
        return sorted(found, key=lambda address: address[0] != socket.AF_INET6)
    raise error or OSError("no address")
