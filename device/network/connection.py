"""One kept-alive HTTP connection whose answers are bounded in time and size.

This module is apart from `transport`, which an app imports at its start: the libraries below take tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from pocketrank.device.bundle.files import BundleError
from pocketrank.device.network.addresses import Address, connect
from pocketrank.device.network.errors import BadAnswerError, ClientError, UnreachableError

__all__ = ["Connection", "Response"]

_CHUNK = 1 << 16
_INFORMATIONAL_MAX = 20
"""Informational answers (1xx) that are read before the answer. A server sends one or two."""


class Response(http.client.HTTPResponse):
    """The beginning of an answer. Its body must be read before the deadline, by `parts` or `body`, or left by `abandon`."""

    def __init__(
        self, sock: socket.socket, *args: Any, deadline: float, connection: http.client.HTTPConnection, **keys: Any
    ) -> None:
        """`deadline` is in seconds of the monotonic clock."""
        super().__init__(sock, *args, **keys)
        self._connection = connection
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, deadline))

    def begin(self) -> None:
        """Read the head of the answer, past any informational one (RFC 9110, 15.2); http.client knows 100 alone."""
        for _ in range(_INFORMATIONAL_MAX):
            super().begin()
            if not 100 <= self.status < 200 or self.status == http.client.SWITCHING_PROTOCOLS:
                return
            self.headers = self.msg = None  # type: ignore[assignment]  # or the next call would return at once
        raise http.client.HTTPException(f"more than {_INFORMATIONAL_MAX} informational answers")

    def parts(self, bytes_max: int) -> Iterator[bytes]:
        """Yield the body as it arrives, or its first bytes beyond `bytes_max` and then abandon the rest."""
        size = 0
        while size <= bytes_max:
            part = self.read1(min(_CHUNK, bytes_max + 1 - size))
            if not part:
                # `read1` reports no error when the server closes the connection early.
                if self.length:
                    raise http.client.IncompleteRead(b"", self.length)
                self.close()  # `read1` does not; the connection is then free for the next call
                return
            yield part
            size += len(part)
        self.abandon()

    def body(self, bytes_max: int) -> bytes:
        """Return the body, or its first bytes beyond `bytes_max`."""
        return b"".join(self.parts(bytes_max))

    def abandon(self) -> None:
        """Leave the rest of the answer unread, which costs the connection."""
        self._connection.close()


class Connection:
    """A connection for one exchange at a time. Errors of http.client pass through, except within `errors`."""

    def __init__(self, scheme: str, host: str, port: int | None, timeout_s: float) -> None:
        """The first exchange connects."""
        self._timeout_s = timeout_s
        self._http = _Http(host, port, ssl.create_default_context() if scheme == "https" else None)

    def close(self, *, avoid: bool = False) -> None:
        """Close the connection; the next exchange opens it again, to another address if it has to `avoid` this one."""
        if avoid:
            self._http.avoided = self._http.peer
        self._http.close()

    def send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float) -> Response:
        """Send a request and return the beginning of the answer, which must be read before `deadline`.

        The request is sent within the timeout of the connection, however far ahead the deadline is.
        """
        connection = self._http
        connection.deadline = min(deadline, time.monotonic() + self._timeout_s)
        connection.response_class = cast("type[Response]", partial(Response, deadline=deadline, connection=connection))
        reused = connection.sock is not None
        try:
            if reused:
                connection.sock.settimeout(connection.left_s())  # the last answer may have left a shorter one
            connection.request(method, path, body, headers)
            return cast("Response", connection.getresponse())
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A server may close an idle connection at any time. Every call can be repeated, because events carry ids.
            connection.close()
            if not reused:
                raise
        connection.request(method, path, body, headers)
        return cast("Response", connection.getresponse())

    @contextlib.contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Raise a `ClientError` of the call `name` in place of an error within the block."""
        try:
            yield
        except (ClientError, BundleError):
            raise
        except http.client.IncompleteRead as err:
            raise UnreachableError(name, "a connection that broke within it") from err
        except (http.client.RemoteDisconnected, OSError) as err:  # includes TimeoutError and ssl errors
            raise UnreachableError(name, str(err) or type(err).__name__) from err
        except (http.client.HTTPException, ValueError) as err:
            raise BadAnswerError(name, "HTTP", f"{type(err).__name__} {err}") from err


class _Http(http.client.HTTPConnection):
    """http.client's connection to the first address that answers, with or without TLS."""

    def __init__(self, host: str, port: int | None, tls: ssl.SSLContext | None) -> None:
        self.default_port = http.client.HTTP_PORT if tls is None else http.client.HTTPS_PORT
        super().__init__(host, port or self.default_port)  # without a port it would look for one in an IPv6 address
        self._tls = tls
        self.deadline = 0.0
        """End of connecting and sending, in seconds of the monotonic clock."""
        self.peer: Address | None = None
        """The address of the last connection."""
        self.avoided: Address | None = None
        """An address that took a connection and then said nothing, or broke it: others are tried first."""

    def left_s(self) -> float:
        """Return the seconds until the deadline, at least one thousandth: a socket takes 0 as "do not wait"."""
        return max(0.001, self.deadline - time.monotonic())

    def connect(self) -> None:
        """Connect before the deadline."""
        self.sock, self.peer = connect(self.host, self.port, self.deadline, self.avoided)
        if self._tls is not None:
            try:
                self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)  # the timeout is on all of it
            except BaseException:
                self.close()
                raise
            self.sock.settimeout(self.left_s())


class _Timed(io.RawIOBase):
    """A socket's bytes until a deadline. The socket's own timeout would start again with each byte."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._raw, self._deadline = sock, sock.makefile("rb", buffering=0), deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out: no whole answer in time")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
