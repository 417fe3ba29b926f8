"""Connections of an attacker: raw requests, slow ones, and counts of what they led to."""

from __future__ import annotations

import gzip
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from threading import Lock
from time import monotonic, sleep
from typing import Any

import msgspec

__all__ = [
    "LARGE_FILE",
    "MSGPACK",
    "AttackOrder",
    "Client",
    "Secrets",
    "Tally",
    "bearer",
    "connect",
    "flood",
    "post",
    "request_head",
]

LARGE_FILE = "large.bin"
"""The file of the bundle that attackers download."""
MSGPACK = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
"""Headers of a body and an answer in MessagePack."""
_PATIENCE_S, _FLOOD_PATIENCE_S = 2.0, 5.0
_FIRST_ADDRESS = 2
_CONNECTIONS = 8


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and ids that attackers are given. Each uses only those that its case names."""

    split_version: str
    items: tuple[int, ...]
    """Ids of published items."""
    users: tuple[int, ...]
    """Ids of users with a past, the first of whom is the attacker, and the second the victim."""
    user: str
    """Token of the attacker as a user of the app."""
    victim: str
    """Token of the victim, to see what the victim has left after an attack."""
    expired: str
    """Token of the victim that expired."""
    kid: str
    """Name of the key that verifies users' tokens."""
    public: str
    """That public key, `x` of its JSON Web Key."""
    device: str
    """Token of the file of tokens with the scope `device`."""
    publish: str
    """Token with the scope `publish`."""


class AttackOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Order to attack."""

    attack: str
    """Name of the attack."""
    port: int
    seconds: float
    """Time after which it ends."""
    secrets: Secrets
    size: int
    """How large the attack is; what it counts is the attack's own."""
    result: str = ""
    """File for what is too long for a line."""


class Tally:
    """Counts of an attack. Safe to call from several threads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._lock = Lock()

    def add(self, **numbers: int) -> None:
        """Count more of each name."""
        with self._lock:
            self.counts.update(numbers)

    def answered(self, status: int) -> None:
        """Count an answer."""
        with self._lock:
            self.counts["answers"] += 1
            if status >= 400:
                self.refused[str(status)] += 1

    def report(self, **more: Any) -> dict[str, Any]:
        """Return all counts, `refused` answers by status, and `more`."""
        return {**self.counts, "refused": dict(sorted(self.refused.items())), **more}


def connect(port: int, address: int = 0) -> socket.socket:
    """Return a connection from the loopback address 127.0.0.(2 + `address`): no honest device has one of those."""
    return socket.create_connection(("127.0.0.1", port), _PATIENCE_S, (f"127.0.0.{_FIRST_ADDRESS + address}", 0))


def bearer(token: str | None) -> dict[str, str]:
    """Return the header with a token, none without one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def request_head(method: str, path: str, length: int | None = None, headers: Mapping[str, str] = {}) -> bytes:
    """Return the head of a request with a body of `length` bytes."""
    lines = {"Host": "127.0.0.1", **headers} | ({} if length is None else {"Content-Length": str(length)})
    return "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items()), "\r\n"]).encode()


def post(path: str, body: bytes, token: str | None, *, packed: bool = False, method: str = "POST") -> bytes:
    """Return a whole request, compressed by gzip where `packed`."""
    headers = {**MSGPACK, **bearer(token)} | ({"Content-Encoding": "gzip"} if packed else {})
    body = gzip.compress(body, 9) if packed else body
    return request_head(method, path, len(body), headers) + body


class Client:
    """Keep-alive connection that waits for each answer, and connects again after a failure."""

    def __init__(self, port: int, tally: Tally, address: int = 0, patience_s: float = _PATIENCE_S) -> None:
        self._port, self._tally, self._address, self._patience_s = port, tally, address, patience_s
        self._socket: socket.socket | None = None

    def __call__(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer; status 0 without a whole one."""
        try:
            if self._socket is None:
                self._socket = connect(self._port, self._address)
                self._socket.settimeout(self._patience_s)
                self._tally.add(connections=1)
            self._socket.sendall(request)
            self._tally.add(requests=1, bytes=len(request))
            status, body = self._answer(self._socket)
        except (OSError, ValueError, IndexError):
            self._tally.add(unanswered=1)
            self.close()
            return 0, b""
        self._tally.answered(status)
        return status, body

    def _answer(self, sock: socket.socket) -> tuple[int, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(sock)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        status = int(lines[0].split()[1])
        length = next((int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")), 0)
        while len(body) < length:
            body += self._more(sock)
        if b"connection: close" in lines:
            self.close()
        return status, body

    @staticmethod
    def _more(sock: socket.socket) -> bytes:
        if not (chunk := sock.recv(1 << 18)):
            raise ConnectionError("closed")
        return chunk

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None


def flood(
    order: AttackOrder,
    requests: Sequence[bytes],
    per_s: float,
    tally: Tally,
    seen: Callable[[int, bytes], None] = lambda status, body: None,
) -> None:
    """Send the `requests`, each once, at most `per_s` a second, on some connections, until they or the time are over.

    `seen` gets status and body of each answer.
    """
    until, began = monotonic() + order.seconds, monotonic()
    numbers = count()

    def run(_: int) -> None:
        client = Client(order.port, tally, patience_s=_FLOOD_PATIENCE_S)
        while (number := next(numbers)) < len(requests):
            sleep(max(0.0, min(until, began + number / per_s) - monotonic()))
            if monotonic() >= until:
                break
            seen(*client(requests[number]))
        client.close()

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(run, range(_CONNECTIONS)))
