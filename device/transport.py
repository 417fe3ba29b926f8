"""HTTP as the device speaks it: standard library only, one kept-alive connection, every answer bounded in time and size.

A call is bounded as a whole: a server that drips byte after byte, in its headers or its body, ends like one that is silent.

Errors::

    ClientError                a call that did not bring an answer; names the method and URL
    ├── BadUrlError            a base URL that no call can be made to
    ├── UnreachableError       no server, no such host, a connection that broke, or no answer in time
    ├── BadStatusError         an answer other than 200; carries `status` and the beginning of the text
    └── BadAnswerError         200 with something that is not what was asked for, or more than is allowed
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from device.bundle_files import BundleError

__all__ = ["BadAnswerError", "BadStatusError", "BadUrlError", "ClientError", "Transport", "UnreachableError", "beginning"]

_CHUNK = 1 << 16
_TEXT_SHOWN = 300  # bytes of an answer's text in an error


class ClientError(RuntimeError):
    """A call that did not bring an answer. `call` is the method and URL."""

    def __init__(self, call: str, message: str) -> None:
        super().__init__(f"{call}: {message}")
        self.call = call


class BadUrlError(ClientError):
    """A base URL that no call can be made to."""


class UnreachableError(ClientError):
    """No server, no such host, a connection that broke, or no answer in time."""


class BadStatusError(ClientError):
    """An answer other than 200."""

    def __init__(self, call: str, status: int, text: str) -> None:
        super().__init__(call, f"expected status 200, got {status}: {text}")
        self.status, self.text = status, text


class BadAnswerError(ClientError):
    """200 with something that is not what was asked for, or more than is allowed."""


class Transport:
    """One connection to one server. Calls from several threads take turns."""

    def __init__(self, base_url: str, token: str | None, timeout_s: float, accept: str) -> None:
        """As `client.CloudClient` has it; `accept` is the content type asked for. Raises `BadUrlError`."""
        try:
            url = urlsplit(base_url)
            port = url.port
        except ValueError as err:
            raise BadUrlError(repr(base_url), str(err)) from err
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or not base_url.isascii():
            raise BadUrlError(repr(base_url), "expected http://host[:port] or https://host[:port]")
        if any(c <= " " for c in base_url) or (token is not None and (not token.isascii() or any(c <= " " for c in token))):
            raise BadUrlError(repr(base_url), "expected a URL and a token of printable characters")
        self._base, self._prefix, self.timeout_s = base_url.rstrip("/"), url.path.rstrip("/"), timeout_s
        self._headers = {"Accept": accept} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPConnection(url.hostname, port, timeout=timeout_s)
            if url.scheme == "http"
            else http.client.HTTPSConnection(url.hostname, port, timeout=timeout_s, context=ssl.create_default_context())
        )
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._connection.close()

    def hang_up(self) -> None:
        """Within an exchange: leave the rest of the answer."""
        self._connection.close()

    def name(self, method: str, path: str) -> str:
        """What a call is called in errors."""
        return f"{method} {self._base}{path}"

    def call(self, method: str, path: str, most: int, body: bytes | None = None, content_type: str = "") -> bytes:
        """The body of a 200 of at most `most` bytes. Raises `ClientError`."""
        with self.exchange(method, path, {"Content-Type": content_type} if content_type else {}, body) as response:
            data = self.read(response, most)
        name = self.name(method, path)
        if response.status != 200:
            raise BadStatusError(name, response.status, beginning(data))
        if len(data) > most:
            raise BadAnswerError(name, f"expected at most {most} bytes, got more")
        return data

    @contextlib.contextmanager
    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        more_s: float = 0.0,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a call of any status, to be read by `parts` within the block, in `more_s` beyond the usual time.

        Raises `ClientError`, also for what goes wrong while it is read.
        """
        deadline = time.monotonic() + self.timeout_s + more_s
        with self._lock, self._errors(self.name(method, path)):
            try:
                yield self._send(method, path, body, {**self._headers, **headers}, deadline)
            except BaseException:
                self._connection.close()  # an answer half read would be taken for the next one's
                raise

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float
    ) -> http.client.HTTPResponse:
        line = self._connection
        line.response_class = cast("type[http.client.HTTPResponse]", partial(_Response, deadline=deadline))
        reused = line.sock is not None
        try:
            if reused:
                line.sock.settimeout(self.timeout_s)  # the last answer may have left it short
            line.request(method, self._prefix + path, body, headers)
            return line.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A server may close an idle connection at any time. Every call can be repeated: events carry ids.
            line.close()
            if not reused:
                raise
        line.request(method, self._prefix + path, body, headers)
        return line.getresponse()

    def read(self, response: http.client.HTTPResponse, most: int) -> bytes:
        """The body, or its first bytes beyond `most`; the connection is closed when some of it was left."""
        return b"".join(self.parts(response, most))

    def parts(self, response: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
        """The body as it comes, or its first bytes beyond `most`."""
        size = 0
        while size <= most:
            part = response.read1(min(_CHUNK, most + 1 - size))
            if not part:
                # `read1` ends quietly when the server hangs up early.
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
                response.close()  # `read1` leaves that to us; the connection is then free for the next call
                return
            yield part
            size += len(part)
        self._connection.close()

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BundleError):
            raise
        except http.client.IncompleteRead as err:
            raise UnreachableError(name, "the connection broke within the answer") from err
        except (http.client.RemoteDisconnected, OSError) as err:  # TimeoutError and ssl errors among them
            raise UnreachableError(name, str(err) or type(err).__name__) from err
        except (http.client.HTTPException, ValueError) as err:
            raise BadAnswerError(name, f"expected HTTP, got {type(err).__name__} {err}") from err


class _Timed(io.RawIOBase):
    """A socket's bytes until a deadline: a timeout of the socket alone would begin anew with each byte that comes."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._raw, self._deadline = sock, sock.makefile("rb", buffering=0), deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out: no whole answer in time")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **keys: Any) -> None:
        super().__init__(sock, *args, **keys)
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, deadline))


def beginning(body: bytes) -> str:
    """What an error shows of an answer."""
    return body[:_TEXT_SHOWN].decode("utf-8", "replace")
