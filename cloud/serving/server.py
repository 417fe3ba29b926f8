"""Runs an application on a port until it is told to stop.

Errors::

    PortError                  the address cannot be had: in use, not this machine's, not allowed
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

__all__ = ["PortError", "listen", "run_server"]

_BACKLOG = 2048
_GRACE_S = 10

_logger = logging.getLogger(__name__)


class PortError(OSError):
    """The address cannot be had: in use, not this machine's, or not allowed."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 takes a free one. Raises `PortError`."""
    if not 0 <= port <= 65535:  # the resolver would take it modulo 65,536
        raise PortError(f"Expected a port of 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise PortError(f"Expected an address to listen on, got {host}:{port}: {error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)  # only this refuses a second server, as both may bind
    except (OSError, OverflowError) as error:
        sock.close()
        raise PortError(f"Expected a free port to listen on, got {host}:{port}: {error}") from error
    return sock


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():
            host, port = sock.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            _logger.info("serving on %s", url)
            print(f"Serving on {url}", flush=True)


def run_server(app: ASGIApp, sock: socket.socket) -> None:
    """Serve `app` on a listening socket until SIGINT or SIGTERM; then requests have 10 s to end. Prints the URL when ready."""
    config = uvicorn.Config(app, access_log=False, log_level="warning", timeout_graceful_shutdown=_GRACE_S, lifespan="on")
    with suppress(KeyboardInterrupt):  # Ctrl-C is how one stops a server; it has shut down in order by now
        _Server(config).run(sockets=[sock])
