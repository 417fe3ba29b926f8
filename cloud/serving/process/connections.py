"""Connections of a server process, bounded in what they send before a request is read and in how long they are silent.

uvicorn bounds neither: it keeps a head in memory until it is whole, and waits for ever for a request's first byte and for a
client that does not read. So anybody could fill the memory or the file table without a token. Here a head has a maximum size,
and a connection that waits for its client has a time and may be closed when others need its place:

========  ==============================================================  ==============================
queue     what the server waits for                                       how long
========  ==============================================================  ==============================
heads     the first request, or the rest of a head                        `head_s`
idle      the next request                                                `keep_alive_s`
bodies    the rest of a body                                              the route says it (`http.body`)
unread    the client to read what was sent                                `unread_s`
========  ==============================================================  ==============================

A connection whose request is being worked on is in no queue, and is never closed to make room.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

__all__ = ["BoundedProtocol", "ConnectionLimits", "Connections", "network_of"]

_logger = logging.getLogger(__name__)

_OPEN_MAX = 8192
"""Connections of a process for which the file limit has room. One that waits takes about 6 kB of memory."""
_FILES_MIN = 64
"""Files that a process needs beside its connections: the run, the bundle, logs, stores."""
_PIPELINED_MAX = 32
"""Requests of a connection that wait for the answers before them. uvicorn makes a few kB of objects for each as it arrives."""
_LOG_S = 60.0
"""Shortest time between two log lines about closed connections."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may send and how long it may be silent. Raises ValueError for numbers that make no sense."""

    head_bytes_max: int = 32 << 10
    """Longest head of a request in bytes: its URL and its headers. 32 kB is nginx's limit."""
    headers_max: int = 100
    """Largest number of headers, as Python's own HTTP server has it."""
    head_s: float = 10.0
    """Longest time until the head of a request is whole, in seconds, from its first byte or, on a new connection, from its
    opening. Also the longest TLS handshake."""
    keep_alive_s: float = 75.0
    """How long a connection may be idle between two requests, in seconds. It should be longer than that of a load balancer in
    front, which would else send a request on a connection that is being closed. Most have 60 s or less."""
    unread_s: float = 30.0
    """How long a client may read nothing of an answer, in seconds. It must read about 48 kB to have as long again."""
    open_max: int | None = None
    """Largest number of connections of a process: the longest silent one is closed for the next, one that has sent no request
    before others. None is what the limit of open files (`ulimit -n`) leaves, with a file for each that may be downloaded, and
    at most 8,192."""
    per_address_max: int | None = None
    """Largest number of connections from one address (of IPv6: one network of 64 bits) of which some are silent: the oldest
    silent one is closed for the next. Behind a proxy all come from one address. None is half of `open_max`."""

    def __post_init__(self) -> None:
        numbers = (self.head_bytes_max, self.headers_max, self.open_max, self.per_address_max)
        if min(self.head_s, self.keep_alive_s, self.unread_s) <= 0 or any(one is not None and one < 1 for one in numbers):
            raise ValueError(f"Expected times > 0 and sizes >= 1, got {self}")


class Connections:
    """The open connections of a process."""

    def __init__(self, limits: ConnectionLimits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits, self._loop = limits, loop
        self._open_max = limits.open_max or _open_max()
        self._per_address_max = limits.per_address_max or max(1, self._open_max // 2)
        self._by_address: dict[bytes, OrderedDict[BoundedProtocol, None]] = {}
        self._count = 0
        # The queues.
        self.heads = _Queue(loop, limits.head_s, f"no whole head within {limits.head_s:g} s", self.close)
        self.idle = _Queue(loop, limits.keep_alive_s, None, self._end)
        self.bodies = _Queue(loop, None, None, self.close)
        self.unread = _Queue(loop, limits.unread_s, f"nothing read for {limits.unread_s:g} s", self.close)
        # The log.
        self._closed = Counter[str]()
        self._flush: asyncio.TimerHandle | None = None

    def opened(self, connection: BoundedProtocol, address: bytes) -> bool:
        """Count a connection that was accepted from an address, which then has the time of a head.

        Silent ones are closed when there are too many. False, and not counted, when there are too many and none is silent.
        """
        same = self._by_address.get(address, OrderedDict())
        if address and len(same) >= self._per_address_max:
            oldest = next((one for one in same if one.queue is self.heads), None)
            oldest = oldest or next((one for one in same if one.queue is not None), None)
            if oldest is not None:
                self.close(oldest, "too many of one address")
        if self._count >= self._open_max and not self.close_oldest():
            self.report("more than there is room for")
            return False
        self._by_address.setdefault(address, same)[connection] = None
        connection.address, connection.is_counted = address, True
        self._count += 1
        connection.wait(self.heads)
        return True

    def closed(self, connection: BoundedProtocol) -> None:
        """Count a connection no longer."""
        if connection.is_counted:
            connection.wait(None)
            connection.is_counted = False
            self._count -= 1
            same = self._by_address[connection.address]
            del same[connection]
            if not same:
                del self._by_address[connection.address]

    def close_oldest(self) -> bool:
        """Close the longest silent connection to make room. False when none is silent.

        Those that owe a head go first: a phone that waits for its next swipe has been silent for longer than an attacker.
        """
        others = (queue for queue in (self.idle, self.bodies, self.unread) if queue)
        queue = self.heads if self.heads else min(others, key=lambda queue: queue.oldest_s, default=None)
        if queue is not None:
            self.close(queue.oldest, "the longest silent of too many")
        return queue is not None

    def close(self, connection: BoundedProtocol, reason: str | None) -> None:
        """Close a silent connection at once, because what it has not read would else be waited for."""
        self.report(reason)
        self.closed(connection)
        connection.abort()

    def _end(self, connection: BoundedProtocol, reason: str | None) -> None:
        """Close an idle connection in order. What it has not read by then is waited for no longer than at any other time."""
        connection.transport.close()
        connection.settle()

    def report(self, reason: str | None) -> None:
        """Count a connection that was closed for a reason, and log the counts at most once a minute."""
        if reason is None:
            return
        self._closed[reason] += 1
        if self._flush is None:
            self._log()

    def _log(self) -> None:
        self._flush = None
        if self._closed:
            _logger.warning("closed connections: %s", ", ".join(f"{n} ({reason})" for reason, n in self._closed.most_common()))
            self._closed.clear()
            self._flush = self._loop.call_later(_LOG_S, self._log)


class _Queue:
    """Connections that wait for the same thing, the longest waiting first. One timer for all of them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float | None,
        reason: str | None,
        close: Callable[[BoundedProtocol, str | None], None],
    ) -> None:
        self._loop, self._seconds, self._reason, self._close = loop, seconds, reason, close
        self._since: OrderedDict[BoundedProtocol, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    @property
    def oldest(self) -> BoundedProtocol:
        return next(iter(self._since))

    @property
    def oldest_s(self) -> float:
        return self._since[self.oldest]

    def add(self, connection: BoundedProtocol) -> None:
        """Add a connection, or let it wait from now on."""
        self._since[connection] = self._loop.time()
        self._since.move_to_end(connection)
        if self._timer is None and self._seconds is not None:
            self._timer = self._loop.call_later(self._seconds, self._expire, self._seconds)

    def remove(self, connection: BoundedProtocol) -> None:
        del self._since[connection]

    def _expire(self, seconds: float) -> None:
        self._timer = None
        while self._since:
            at = self.oldest_s + seconds
            if at > self._loop.time():
                self._timer = self._loop.call_at(at, self._expire, seconds)
                return
            self._close(self.oldest, self._reason)


class _HeadTooLargeError(Exception):
    """A head or trailer that is longer than allowed."""


class _PipelinedError(Exception):
    """More requests than allowed wait for the answers before them."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the limits of `connections`. A request to upgrade it to another is answered as any other."""

    def __init__(self, *args: Any, connections: Connections, **keys: Any) -> None:
        super().__init__(*args, **keys)
        self.address = b""
        """The client's address; its network, for IPv6. Empty for a socket without one."""
        self.queue: _Queue | None = None
        """What the connection waits in; None while the server works for it."""
        self.opening: asyncio.Task[None] | None = None
        """The task that makes the TLS handshake; there is no transport before its end."""
        self._open, self._limits = connections, connections.limits
        self._reads_head = self._reads_body = False
        self._head_bytes = 0
        self._unparsed_bytes = 0
        """Bytes since the last that were the end of a head, of a body or of a part of it."""
        self._unanswered = deque[RequestResponseCycle]()
        """The request that is worked on, and those that wait for its answer. uvicorn keeps the last alone."""
        self.is_counted = False
        """Whether the connection is among the open ones."""

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, after the TLS handshake where there is one."""
        super().connection_made(transport)
        self.settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no longer."""
        self._open.closed(self)
        self._drop_unanswered()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin the time that the client has to read."""
        super().pause_writing()
        self.settle()

    def resume_writing(self) -> None:
        """End it."""
        super().resume_writing()
        self.settle()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent, and refuse a head that does not end."""
        if self.transport.is_closing():
            return
        self._unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # what follows would be of the other protocol
        except httptools.HttpParserError as error:
            self._refuse(error.__context__)
            return
        # The parser reports nothing of a header, a trailer or a chunk's size before its end. Blanks and separators count here.
        if self._unparsed_bytes > 2 * self._limits.head_bytes_max:
            self._refuse(_HeadTooLargeError())
            return
        if self.queue is not None and self.queue is self._open.bodies:
            self.queue.add(self)  # it is not silent
        self.settle()

    # The parser.

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._reads_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. A trailer counts and is dropped, because nobody here wants one."""
        self._count(len(name) + len(value))
        if self._reads_head:
            if len(self.headers) >= self._limits.headers_max:
                raise _HeadTooLargeError
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the work for a request, or let it wait for the one before."""
        if len(self.pipeline) >= _PIPELINED_MAX:
            raise _PipelinedError
        self._reads_head, self._reads_body, self._unparsed_bytes = False, True, 0
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._reads_body, self._unparsed_bytes = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End the answer. The connection is then idle, or goes on with the next request."""
        self._unanswered.popleft()
        super().on_response_complete()
        self._unset_keepalive_if_required()  # the queues have one timer for all connections
        if self.cycle.response_complete:
            self.cycle.body = bytearray()  # what nobody has read
        self.settle()

    # Ours.

    def wait(self, queue: _Queue | None) -> None:
        """Wait in this queue from now on, or in none. Nothing changes for one that waits there already."""
        if queue is not self.queue:
            if self.queue is not None:
                self.queue.remove(self)
            if queue is not None:
                queue.add(self)
            self.queue = queue

    def abort(self) -> None:
        """Close the connection at once, whatever has not been sent."""
        self._drop_unanswered()
        if cast("object | None", self.transport) is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def settle(self) -> None:
        """Wait in the queue of what the client owes now, and in none while the server works for it."""
        if not self.is_counted:
            return
        if self.flow.write_paused or self.transport.is_closing():
            self.wait(self._open.unread)
        elif cast("object | None", self.cycle) is None:  # before the first request
            self.wait(self._open.heads)
        elif not self.cycle.response_complete:
            self.wait(self._open.bodies if self._reads_body else None)
        else:  # the rest of a body that was answered has the time of a head, too
            self.wait(self._open.heads if self._reads_head or self._reads_body else self._open.idle)

    def _drop_unanswered(self) -> None:
        """Let the requests know that nobody gets their answers: writing one would fail."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes_max:
            raise _HeadTooLargeError

    def _refuse(self, error: BaseException | None) -> None:
        """Close the connection, with an answer unless another is under way."""
        if isinstance(error, _PipelinedError):
            status, reason = HTTPStatus.BAD_REQUEST, "too many requests at once"
        elif isinstance(error, _HeadTooLargeError):
            status, reason = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "a head that is too large"
        else:
            status, reason = HTTPStatus.BAD_REQUEST, "no HTTP"
        self._open.report(reason)
        if not self._unanswered or (len(self._unanswered) == 1 and not self.cycle.response_started):
            text = f"Expected a request of HTTP/1.1, got {reason}."
            head = (
                f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {len(text)}"
            )
            self.transport.write(f"{head}\r\nconnection: close\r\n\r\n{text}".encode())
        self._drop_unanswered()
        self.transport.close()
        self.settle()


def network_of(host: str) -> bytes:
    """Return an IPv4 address, or the first 64 bits of an IPv6 address: one customer has all of those."""
    with suppress(OSError):
        return socket.inet_pton(socket.AF_INET, host)
    with suppress(OSError):
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed[:8]  # the first is IPv4 in IPv6
    return b""


def _open_max() -> int:
    """Return how many connections the limit of open files leaves room for. Each may be the download of an open file."""
    files = -1 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _OPEN_MAX if files < 0 else max(1, min(_OPEN_MAX, (files - _FILES_MIN) // 2))
