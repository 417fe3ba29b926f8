"""An application served on a port until it is stopped.

Errors::

    PortError                  the address cannot be used: in use, not this machine's, not allowed
    TlsError                   a certificate or key that cannot be used, or is missing; names the file
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import uvicorn
from starlette.types import ASGIApp

from pocketrank.cloud.serving.process.connections import BoundedProtocol, ConnectionLimits, Connections, network_of
from pocketrank.device.contract import MismatchError

__all__ = ["PortError", "ServerConfig", "TlsConfig", "TlsError", "listen", "print_serving", "run_server", "url_of"]

_logger = logging.getLogger(__name__)


class PortError(OSError):
    """The address cannot be used: it is in use, not this machine's, or not allowed."""


class TlsError(MismatchError, ValueError):
    """A certificate or key that cannot be used. The message names the file."""


@dataclass(frozen=True)
class TlsConfig:
    """The files that a server proves its name with. TLS 1.2 is the lowest version that Python's defaults accept."""

    certfile: Path
    """The certificate in PEM, followed by those of the authorities that signed it."""
    keyfile: Path
    """Its private key in PEM, without a password. Only its owner may read it."""

    @classmethod
    def of(cls, certfile: Path | None, keyfile: Path | None) -> TlsConfig | None:
        """Return the configuration of two files, or None when neither is given. Raises `TlsError` when one is missing."""
        if certfile is not None and keyfile is not None:
            return cls(certfile, keyfile)
        if (alone := certfile or keyfile) is not None:
            raise TlsError(alone, "the certificate and its key", "a certificate alone" if certfile else "a key alone")
        return None

    def check(self) -> None:
        """Raise `TlsError` when a file is missing, unreadable or not PEM, or when the two do not match."""
        for path, what in ((self.certfile, "a certificate in PEM"), (self.keyfile, "a private key in PEM")):
            try:
                text = path.read_text("ascii", "replace")
            except OSError as error:
                raise TlsError(path, what, error.strerror or type(error).__name__) from error
            if ("PRIVATE KEY-----" if path == self.keyfile else "-----BEGIN CERTIFICATE-----") not in text:
                raise TlsError(path, what, "something else")
        # The group may read: Kubernetes mounts secrets for the pod's group.
        if os.name == "posix" and self.keyfile.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise TlsError(self.keyfile, "a key that only its owner may read (chmod 600)", "one that others may")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password function OpenSSL would prompt on the terminal, and the server would wait for ever.
            context.load_cert_chain(self.certfile, self.keyfile, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            got = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise TlsError(self.keyfile, f"the key, without a password, of {self.certfile}", got) from error


def _no_password() -> str:
    raise ValueError("a password")


@dataclass(frozen=True)
class ServerConfig:
    """How one process serves a socket."""

    tls: TlsConfig | None = None
    """The certificate of https; None serves without TLS. Read once, when the process starts. Raises `TlsError`."""
    drain_s: float = 0.0
    """How long after SIGTERM the server still accepts connections while it reports that it is not ready, so that load balancers
    turn to others before it closes. 0 where whoever stops it has waited for that, as a Kubernetes `preStop` hook does."""
    grace_s: float = 10.0
    """How long requests have to end, once nothing is accepted any more."""
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    """What a connection may send and how long it may be silent, before and between requests."""

    def __post_init__(self) -> None:
        if self.tls is not None:
            self.tls.check()  # before anything is loaded


_BACKLOG = 2048
_SEND_BYTES = 256 << 10
"""Room for what a client has not read yet, which Linux doubles: enough for 5 MB a second over 100 ms. By itself it grows to
some 4 MB a connection, which clients that read nothing would fill."""
_ACCEPT_PAUSE_S = 0.001
"""Pause of a process after each connection that it accepts from a socket that others share, so that they get their part. Of 32
connections made at once to two processes, each got 15 to 17 with it; without it one got 4 to 12 and the other the rest."""
_SCARCE_S = 1.0
"""Pause when the process is out of file descriptors, as asyncio's own servers make."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; `port` 0 takes a free port. Raises `PortError`."""
    if not 0 <= port <= 65535:  # the resolver would take it modulo 65,536
        raise PortError(f"Expected a port of 0 to 65535, got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise PortError(f"Expected an address to listen on, got {host}:{port}: {error}") from error
    try:
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        sock = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)  # connections inherit it
        return sock
    except (OSError, OverflowError) as error:
        raise PortError(f"Expected a free port to listen on, got {host}:{port}: {error}") from error


def url_of(sock: socket.socket, *, tls: bool = False) -> str:
    """Return the URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"http{'s' if tls else ''}://[{host}]:{port}" if ":" in host else f"http{'s' if tls else ''}://{host}:{port}"


def print_serving(url: str) -> None:
    """Print the line that shows whoever started the server that it is ready, and log it."""
    _logger.info("serving on %s", url)
    print(f"Serving on {url}", flush=True)


def run_server(
    app: ASGIApp,
    sock: socket.socket,
    config: ServerConfig = ServerConfig(),
    *,
    heartbeat: Callable[[], None] | None = None,
    draining: Callable[[], None] | None = None,
) -> None:
    """Serve `app` on a listening socket until SIGINT, SIGTERM or SIGHUP, and return when what was accepted is
    answered.

    `heartbeat` is for a process that shares the socket with others (`pocketrank.cloud.serving.process.workers`). The event loop
    calls it once requests are accepted, and from then on ten times a second until it closes. Without it the URL is printed.
    `draining` is called at the signal, while requests are still accepted for `drain_s`. Raises `TlsError`.
    """
    if config.tls is not None:
        config.tls.check()  # files may have changed since the configuration was made
    with suppress(KeyboardInterrupt):  # a second Ctrl-C; the first is how one stops a server
        _Server(app, config, heartbeat, draining).run(sockets=[sock])


class _Server(uvicorn.Server):
    def __init__(
        self, app: ASGIApp, config: ServerConfig, heartbeat: Callable[[], None] | None, draining: Callable[[], None] | None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                log_config=None,
                log_level="warning",
                timeout_graceful_shutdown=round(config.grace_s),
                lifespan="on",
                ws="none",
                ssl_certfile=None if config.tls is None else config.tls.certfile,
                ssl_keyfile=None if config.tls is None else config.tls.keyfile,
            )
        )
        self._ours, self._heartbeat, self._draining = config, heartbeat, draining
        self._accept_until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        (sock,) = sockets or []
        await super().startup([])
        connections = Connections(self._ours.connections, asyncio.get_running_loop())

        def protocol() -> BoundedProtocol:
            return BoundedProtocol(self.config, self.server_state, self.lifespan.state, connections=connections)

        pause_s = 0.0 if self._heartbeat is None else _ACCEPT_PAUSE_S
        self.servers.append(_Acceptor(sock, protocol, connections, self.config.ssl, pause_s))  # type: ignore[arg-type]
        if self._heartbeat is None:
            print_serving(url_of(sock, tls=self.config.ssl is not None))
        else:
            self._heartbeat()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at SIGHUP, too, which a terminal sends when it closes, unless whoever started this ignores it (nohup)."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            with super().capture_signals():
                yield
            return
        before = signal.signal(signal.SIGHUP, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(signal.SIGHUP, before)

    async def on_tick(self, counter: int) -> bool:
        if self._heartbeat is not None:
            self._heartbeat()
        if not await super().on_tick(counter):
            return False
        if self._accept_until is None:
            self._accept_until = monotonic() + self._ours.drain_s
            if self._draining is not None:
                self._draining()
        return self.force_exit or monotonic() >= self._accept_until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._captured_signals.clear()  # it has ended in order: the process need not die of the signal


class _Acceptor:
    """A server on a socket that other processes may accept from, too. It accepts one connection at a time.

    asyncio's own server accepts every waiting connection at once, so that one process had whole bursts to itself, and accepts
    them until it is out of file descriptors. `SO_REUSEPORT` deals by chance, and what was dealt to a process that died waits
    until it is back.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], BoundedProtocol],
        connections: Connections,
        tls: ssl.SSLContext | None,
        pause_s: float,
    ) -> None:
        """`pause_s` is the pause after each connection."""
        self._sock, self._protocol, self._connections, self._pause_s = sock, protocol, connections, pause_s
        self._loop, self._tls = asyncio.get_running_loop(), tls
        self._tasks = set[asyncio.Task[None]]()
        self._closed = False
        sock.setblocking(False)
        self._resume()

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        pause_s = self._pause_s
        try:
            connection, address = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was first
        except OSError as error:
            self._connections.report(f"not accepted: {error.strerror}")
            self._connections.close_oldest()
            pause_s = _SCARCE_S
        else:
            connection.setblocking(False)
            protocol = self._protocol()
            if self._connections.opened(protocol, network_of(address[0])):
                protocol.opening = task = self._loop.create_task(self._connect(connection, protocol))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                connection.close()
        if pause_s:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.call_later(pause_s, self._resume)

    async def _connect(self, connection: socket.socket, protocol: BoundedProtocol) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls)
        except (TimeoutError, OSError, asyncio.CancelledError):  # a handshake that fails is the client's concern
            self._connections.closed(protocol)
            return
        if self._closed:  # the server has already closed its other connections
            protocol.shutdown()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())

    async def wait_closed(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
