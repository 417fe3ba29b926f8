"""HTTP calls by the standard library: one kept-alive connection, every answer bounded in time and size.

The time bound is on the call as a whole: a server that sends a byte at a time, in its headers or its body, times out like one
that sends nothing.

A GET follows redirects, because bundles are often moved to a content delivery network. The token goes to the origin of the base
URL only, and a call that began with https never goes on without it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pocketrank.device.network.errors import BadAnswerError, BadStatusError, BadUrlError, NoTokenError

if TYPE_CHECKING:
    from pocketrank.device.network.connection import Connection, Response

__all__ = ["Transport"]

_MSGPACK = "application/msgpack"
_CHUNK = 1 << 16  # bytes of a refusal
_TEXT_MAX = 300  # bytes of an answer's text in an error
_REDIRECTS = (301, 302, 303, 307, 308)
_REDIRECTS_MAX = 5
"""Redirects that one call follows. A content delivery network needs one or two."""
_REDIRECT_BODY_MAX = 1 << 16  # bytes
_URL = "%/:?#[]@!$&'()*+,;=~"  # characters with a meaning in a URL; some servers leave it to the client to escape the others


_Origin = tuple[str, str, int]  # scheme, host, port


class Transport:
    """One connection to one server, opened by the first call. Calls from several threads take turns."""

    def __init__(self, base_url: str, token: str | Callable[[], str] | None, timeout_s: float) -> None:
        """See `client.CloudClient`. Raises `BadUrlError`."""
        try:
            url = urlsplit(base_url)
            server = _origin(url)
        except ValueError as err:
            raise BadUrlError(repr(base_url), "a URL", str(err)) from err
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or not base_url.isascii():
            raise BadUrlError(repr(base_url), "http://host[:port] or https://host[:port]", "another kind of URL")
        self._fresh_token = token if callable(token) else None
        fixed = None if callable(token) else token
        for name, text in ("a URL", base_url), ("a token", fixed or ""):
            if not _is_printable(text):
                raise BadUrlError(repr(base_url), f"{name} of printable ASCII characters", "others in it")
        self._base, self._prefix, self._timeout_s = base_url.rstrip("/"), url.path.rstrip("/"), timeout_s
        self._headers = {"Accept": _MSGPACK} | ({} if fixed is None else {"Authorization": f"Bearer {fixed}"})
        self._server = server
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    def name(self, method: str, path: str) -> str:
        """Return the name of a call in errors: its method and URL."""
        return f"{method} {self._base}{path}"

    def call(self, method: str, path: str, bytes_max: int, body: bytes | None = None) -> bytes:
        """Return the body of a 200 of at most `bytes_max` bytes. `body` is MessagePack to send. Raises `ClientError`."""
        with self.exchange(method, path, {} if body is None else {"Content-Type": _MSGPACK}, body) as response:
            data = response.body(bytes_max)
        if response.status != 200:
            raise self.bad_status(method, path, response, data)
        if len(data) > bytes_max:
            raise BadAnswerError(self.name(method, path), f"at most {bytes_max} bytes", "more")
        return data

    def bad_status(self, method: str, path: str, response: Response, body: bytes) -> BadStatusError:
        """Return the error for an answer with an unexpected status."""
        text = body[:_TEXT_MAX].decode("utf-8", "replace")
        if response.status in _REDIRECTS and (location := response.getheader("Location")):
            text = f"a redirect that is not followed, to {location[:_TEXT_MAX]!r}"
        return BadStatusError(self.name(method, path), response.status, text, _seconds(response.getheader("Retry-After")))

    @contextlib.contextmanager
    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        more_s: float = 0.0,
    ) -> Iterator[Response]:
        """Make a call and yield its answer of any status, to be read within the block, in `more_s` beyond the timeout.

        A GET yields the answer behind redirects. One that may not be followed is yielded itself. Raises `ClientError`, also for
        errors while the answer is read.
        """
        connection = self._connected()
        deadline = time.monotonic() + self._timeout_s + more_s
        with self._lock, connection.errors(self.name(method, path)), contextlib.ExitStack() as elsewhere:
            try:
                response = self._send(connection, method, path, body, headers, deadline)
                url = urlsplit(self._base + path)
                for _ in range(_REDIRECTS_MAX if method == "GET" else 0):
                    target = _target(url, response)
                    if target is None:
                        break
                    response.body(_REDIRECT_BODY_MAX)  # the connection is then free for the next call
                    response, url = self._follow(connection, target, headers, deadline, elsewhere), target
                yield response
            except BaseException as error:
                # The rest of an answer would be read as the beginning of the next.
                connection.close(avoid=isinstance(error, OSError))
                raise

    def _send(
        self, connection: Connection, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float
    ) -> Response:
        """Return the beginning of the answer, with a fresh token where there is none or the server refuses the last one."""
        renews = self._fresh_token is not None
        if renews and "Authorization" not in self._headers:
            self._renew_token(self.name(method, path))
        response = connection.send(method, self._prefix + path, body, {**self._headers, **headers}, deadline)
        if renews and response.status == 401:
            response.body(_CHUNK)  # the connection is then free for the next request
            self._renew_token(self.name(method, path))
            response = connection.send(method, self._prefix + path, body, {**self._headers, **headers}, deadline)
        return response

    def _renew_token(self, name: str) -> None:
        assert self._fresh_token is not None
        self._headers.pop("Authorization", None)
        try:
            token = self._fresh_token()
        except Exception as err:  # the app's own code
            raise NoTokenError(name, "a token of the app", type(err).__name__) from err
        if not isinstance(token, str) or not token or not _is_printable(token):
            raise NoTokenError(name, "a token of printable ASCII characters", "something else")
        self._headers["Authorization"] = f"Bearer {token}"

    def _follow(
        self,
        connection: Connection,
        url: SplitResult,
        headers: Mapping[str, str],
        deadline: float,
        elsewhere: contextlib.ExitStack,
    ) -> Response:
        """Return the answer to a GET of `url`, over `connection` or, of another origin, one that is closed with `elsewhere`."""
        own = self._headers
        if _origin(url) != self._server:
            connection = self._connect(_origin(url))
            elsewhere.callback(connection.close)
            own = {name: value for name, value in own.items() if name != "Authorization"}
            # Another server has tags of its own, and would send the whole file each time. The digest holds without them.
            headers = {name: value for name, value in headers.items() if name != "If-Range"}
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        return connection.send("GET", quote(path, _URL, "latin-1"), None, {**own, **headers}, deadline)

    def _connected(self) -> Connection:
        if self._connection is None:
            with self._lock:
                self._connection = self._connection or self._connect(self._server)
        return self._connection

    def _connect(self, origin: _Origin) -> Connection:
        # Importing it takes longer than all swipes of a session; an app without network never does.
        from pocketrank.device.network.connection import Connection

        return Connection(*origin, self._timeout_s)


def _origin(url: SplitResult) -> _Origin:
    return url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _target(url: SplitResult, response: Response) -> SplitResult | None:
    """Return where the answer to a GET of `url` redirects to; None when it does not, or when that may not be followed."""
    location = response.getheader("Location")
    if response.status not in _REDIRECTS or location is None:
        return None
    target = urlsplit(urljoin(url.geturl(), location))
    may_follow = target.scheme == "https" or (target.scheme == url.scheme == "http")
    return target if may_follow and target.hostname else None


def _is_printable(text: str) -> bool:
    return text.isascii() and all(c > " " for c in text)


def _seconds(text: str | None) -> float | None:
    # The other form of `Retry-After` is a date, by the server's clock, which may differ from the device's.
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None
