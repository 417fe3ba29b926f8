"""HTTP as the device speaks it: standard library only, one kept-alive connection, every answer bounded in time and size.

A call is bounded as a whole: a server that drips byte after byte, in its headers or its body, ends like one that is silent.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pocketrank.device.network.errors import BadAnswerError, BadStatusError, BadUrlError

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from pocketrank.device.network.connection import Connection

__all__ = ["Transport", "beginning"]

_TEXT_SHOWN = 300  # bytes of an answer's text in an error


class Transport:
    """One connection to one server, made at the first call. Calls from several threads take turns."""

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
        self._base, self._prefix, self._timeout_s = base_url.rstrip("/"), url.path.rstrip("/"), timeout_s
        self._headers = {"Accept": accept} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        self._server = (url.scheme, url.hostname, port)
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self.hang_up()

    def hang_up(self) -> None:
        """Within an exchange: leave the rest of the answer."""
        if self._connection is not None:
            self._connection.close()

    def name(self, method: str, path: str) -> str:
        """What a call is called in errors."""
        return f"{method} {self._base}{path}"

    def call(self, method: str, path: str, bytes_max: int, body: bytes | None = None, content_type: str = "") -> bytes:
        """The body of a 200 of at most `bytes_max` bytes. Raises `ClientError`."""
        with self.exchange(method, path, {"Content-Type": content_type} if content_type else {}, body) as response:
            data = self.read(response, bytes_max)
        name = self.name(method, path)
        if response.status != 200:
            raise BadStatusError(name, response.status, beginning(data), _seconds(response.getheader("Retry-After")))
        if len(data) > bytes_max:
            raise BadAnswerError(name, f"expected at most {bytes_max} bytes, got more")
        return data

    @contextlib.contextmanager
    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        more_s: float = 0.0,
    ) -> Iterator[HTTPResponse]:
        """The answer to a call of any status, to be read by `parts` within the block, in `more_s` beyond the usual time.

        Raises `ClientError`, also for what goes wrong while it is read.
        """
        connection = self._connected()
        deadline = time.monotonic() + self._timeout_s + more_s
        with self._lock, connection.errors(self.name(method, path)):
            try:
                yield connection.send(method, self._prefix + path, body, {**self._headers, **headers}, deadline)
            except BaseException:
                connection.close()  # an answer half read would be taken for the next one's
                raise

    def read(self, response: HTTPResponse, bytes_max: int) -> bytes:
        """The body, or its first bytes beyond `bytes_max`; the connection is closed when some of it was left."""
        return b"".join(self.parts(response, bytes_max))

    def parts(self, response: HTTPResponse, bytes_max: int) -> Iterator[bytes]:
        """The body as it comes, or its first bytes beyond `bytes_max`."""
        return self._connected().parts(response, bytes_max)

    def _connected(self) -> Connection:
        if self._connection is None:
            from pocketrank.device.network.connection import (
                Connection,  # what it imports takes longer than an app's whole session
            )

            with self._lock:
                self._connection = self._connection or Connection(*self._server, self._timeout_s)
        return self._connection


def _seconds(text: str | None) -> float | None:
    # A date, which is the other form, would be by the server's clock.
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


def beginning(body: bytes) -> str:
    """What an error shows of an answer."""
    return body[:_TEXT_SHOWN].decode("utf-8", "replace")
