"""Attacks by connections alone: endless heads, silence, requests that do not end, answers that are not read, nonsense.

Only downloads and pages that are not read need a token.
"""

from __future__ import annotations

import selectors
import socket
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from benchmarks.reliability.attack.wire import LARGE_FILE, AttackOrder, Tally, bearer, connect, post, request_head
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import PageRequest

__all__ = ["endless_heads", "nonsense", "silence", "unfinished", "unread_downloads", "unread_pages"]

_PAUSE_S = 0.02
_CHUNK = 64 << 10
_SENT_MAX = 1 << 30
_ADDRESSES = 24
_DRIP_S = 1.0
_PIPELINED = 30
_AGAIN_S = 0.5
"""Time after which those that were closed are opened again."""


def endless_heads(order: AttackOrder) -> dict[str, Any]:
    """Send a head that never ends on one connection, many headers or a single one in turn; connect again when it is closed."""
    tally, until = Tally(), monotonic() + order.seconds
    begin = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    shapes = (b"X-Name: value\r\n" * (_CHUNK // 15), b"a" * _CHUNK)
    number = 0
    while monotonic() < until and tally.counts["bytes"] < _SENT_MAX:
        with suppress(OSError), connect(order.port) as sock:
            tally.add(connections=1)
            sock.sendall(begin)
            number += 1
            while monotonic() < until and tally.counts["bytes"] < _SENT_MAX:
                tally.add(bytes=sock.send(shapes[number % 2]))
        sleep(_PAUSE_S)
    return tally.report()


def silence(order: AttackOrder) -> dict[str, Any]:
    """Hold `size` connections that say nothing, from one address, or from 24 with the name `silence_of_many`."""
    addresses = _ADDRESSES if order.attack == "silence_of_many" else 1
    return _hold(order, [b""] * order.size, addresses=addresses, again=True)


def unfinished(order: AttackOrder) -> dict[str, Any]:
    """Hold `size` connections of each kind: nothing at all, half a head, a head of which a byte arrives each second, and a
    whole head with no byte of its body.
    """
    half = b"POST /v1/page HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: "
    no_body = post("/v1/page", b"", order.secrets.user).replace(b"Content-Length: 0", b"Content-Length: 1000")
    done = _hold(order, [kind for kind in (b"", half, half, no_body) for _ in range(order.size)], drip=True)
    return done | {"open_unfinished_s": done["open_longest_s"]}


def unread_downloads(order: AttackOrder) -> dict[str, Any]:
    """Ask for the large file on `size` connections, and never read."""
    request = request_head("GET", f"/v1/bundle/files/{LARGE_FILE}", headers=bearer(order.secrets.user))
    return _hold(order, [request] * order.size, reads=False)


def unread_pages(order: AttackOrder) -> dict[str, Any]:
    """Ask for many pages at once on `size` connections, and never read."""
    secrets = order.secrets
    body = to_msgpack(
        PageRequest(
            request_id="unread",
            user_id=secrets.users[0],
            session_id="unread",
            now_ms=0,
            size=100,
            split_version=secrets.split_version,
        )
    )
    requests = post("/v1/page", body, secrets.device) * _PIPELINED
    return _hold(order, [requests] * order.size, reads=False)


def nonsense(order: AttackOrder) -> dict[str, Any]:
    """Open `size` connections one after the other that send what is no HTTP."""
    tally, until = Tally(), monotonic() + order.seconds
    texts = (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 64)
    began = monotonic()
    for number in range(order.size):
        sleep(max(0.0, began + number * order.seconds / order.size - monotonic()))
        if monotonic() > until:
            break
        with suppress(OSError), connect(order.port) as sock:
            tally.add(connections=1)
            text = texts[number % len(texts)]
            sock.sendall(text)
            tally.add(bytes=len(text))
    return tally.report()


def _hold(
    order: AttackOrder,
    firsts: list[bytes],
    *,
    addresses: int = 1,
    again: bool = False,
    drip: bool = False,
    reads: bool = True,
) -> dict[str, Any]:
    """Hold a connection for each of `firsts`, which sends that much at first.

    A connection that is closed is opened `again`; with `drip` those that sent a part of a head send a byte each second.
    Without `reads` nothing is read. Counts `open_longest_s`, the longest time that one stayed open.
    """
    tally, until = Tally(), monotonic() + order.seconds
    selector = selectors.DefaultSelector()
    longest, next_drip, next_again = 0.0, monotonic() + _DRIP_S, monotonic() + _AGAIN_S
    lost = list[int]()

    def open_one(number: int) -> None:
        with suppress(OSError):
            sock = connect(order.port, number % addresses)
            if not reads:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            first = firsts[number]
            sock.sendall(first)
            sock.setblocking(False)
            tally.add(connections=1, bytes=len(first))
            selector.register(sock, selectors.EVENT_READ if reads else selectors.EVENT_WRITE, (number, monotonic(), first))

    for number in range(len(firsts)):
        open_one(number)
    while (now := monotonic()) < until:
        for key, _ in selector.select(0.05) if reads else ():
            sock, (number, since, _first) = key.fileobj, key.data
            assert isinstance(sock, socket.socket)
            try:
                if sock.recv(1 << 16):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            longest = max(longest, monotonic() - since)
            selector.unregister(sock)
            sock.close()
            tally.add(closed=1)
            lost.append(number)
        if again and now >= next_again:
            next_again = now + _AGAIN_S
            for number in lost:
                open_one(number)
            lost.clear()
        if not reads:
            sleep(0.05)
        if drip and now >= next_drip:
            next_drip = now + _DRIP_S
            half = [key for key in selector.get_map().values() if key.data[2].endswith(b"X-Half: ") and key.data[0] % 2]
            for key in half:
                with suppress(OSError):
                    key.fileobj.send(b"a")  # type: ignore[union-attr]
    left = list(selector.get_map().values())
    for key in left:
        longest = max(longest, monotonic() - key.data[1])
        key.fileobj.close()  # type: ignore[union-attr]
    return tally.report(open_at_the_end=len(left), open_longest_s=longest)
