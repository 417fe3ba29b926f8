"""Talks to the cloud: pages, feedback, bundles. Standard library only, one kept-alive connection.

Errors::

    ClientError                a call that did not bring an answer; names the method and URL
    ├── BadUrlError            a base URL that no call can be made to
    ├── UnreachableError       no server, no such host, a connection that broke, or no answer in time
    ├── BadStatusError         an answer other than 200; carries `status` and the beginning of the text
    └── BadAnswerError         200 with something that is not what was asked for, or more than is allowed

`download_bundle` also raises `bundle.BundleError`, and OSError when the device's disk fails.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from device.bundle import MANIFEST, Bundle, BundleError, CorruptBundleError, check_path
from device.codec import from_json, from_msgpack, to_msgpack
from device.contract import (
    BundleManifest,
    ContractError,
    FeedbackBatch,
    FeedbackEvent,
    FeedbackReceipt,
    Page,
    PageRequest,
)

__all__ = ["BadAnswerError", "BadStatusError", "BadUrlError", "ClientError", "CloudClient", "UnreachableError"]

MSGPACK = "application/msgpack"
_ANSWER_MAX = 16 << 20  # bytes; a page of 60 candidates has ten thousand
_FILE_MAX = 256 << 20  # bytes of one bundle file
_CHUNK = 1 << 16

S = TypeVar("S", bound=msgspec.Struct)


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


class CloudClient:
    """One device's line to the cloud. Calls from several threads take turns."""

    def __init__(self, base_url: str, token: str | None = None, timeout_s: float = 5.0) -> None:
        """`base_url` like `https://host:port/prefix`; `token` is sent as bearer; `timeout_s` bounds each call as a whole.

        Raises `BadUrlError`; nothing is connected yet.
        """
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
        self._headers = {"Accept": MSGPACK} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPConnection(url.hostname, port, timeout=timeout_s)
            if url.scheme == "http"
            else http.client.HTTPSConnection(url.hostname, port, timeout=timeout_s, context=ssl.create_default_context())
        )
        self._lock = threading.Lock()

    def __enter__(self) -> CloudClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._connection.close()

    def page(self, request: PageRequest) -> Page:
        """A page. Its blocks are not looked into: a session falls back by itself where one is bad.

        Raises `ClientError`; the request's feedback is then still yours.
        """
        return self._post("/v1/page", request, Page)

    def send_feedback(self, events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        """Upload events; once this returns they are durable. Sending an event twice is harmless. Raises `ClientError`."""
        return self._post("/v1/feedback", FeedbackBatch(events=tuple(events)), FeedbackReceipt)

    def health(self) -> dict[str, Any]:
        """What the server says of itself. Raises `ClientError`."""
        body = self._call("GET", "/healthz", None, _ANSWER_MAX)
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except (ValueError, RecursionError) as err:
            raise BadAnswerError(self._name("GET", "/healthz"), str(err)) from err

    def download_bundle(self, folder: Path) -> Bundle:
        """The server's bundle, installed as `folder`: all of it, checked, or what was there before.

        Nothing but the manifest is fetched when `folder` already holds the same bundle. Raises `ClientError`, `BundleError`.
        """
        text = self._call("GET", f"/v1/bundle/{MANIFEST}", None, _ANSWER_MAX)
        with contextlib.suppress(OSError, BundleError):
            if (folder / MANIFEST).read_bytes() == text:
                return Bundle.open(folder)
        try:
            manifest = from_json(text, BundleManifest)
        except ContractError as err:
            raise BadAnswerError(self._name("GET", f"/v1/bundle/{MANIFEST}"), str(err)) from err
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the goal, so that the last step is a rename within one file system.
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for entry in manifest.files:
                target = new / check_path(entry.path)
                if not 0 <= entry.bytes <= _FILE_MAX:
                    raise CorruptBundleError(entry.path, f"at most {_FILE_MAX} bytes", str(entry.bytes))
                body = self._call("GET", f"/v1/bundle/files/{quote(entry.path)}", None, entry.bytes)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(body)
            (new / MANIFEST).write_bytes(text)
            bundle = Bundle.open(new)
            _install(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return Bundle(folder, bundle.manifest, bundle.spec)

    def _post(self, path: str, body: msgspec.Struct, answer: type[S]) -> S:
        data = self._call("POST", path, to_msgpack(body), _ANSWER_MAX)
        try:
            return from_msgpack(data, answer)
        except ContractError as err:
            raise BadAnswerError(self._name("POST", path), str(err)) from err

    def _name(self, method: str, path: str) -> str:
        return f"{method} {self._base}{path}"

    def _call(self, method: str, path: str, body: bytes | None, most: int) -> bytes:
        """The body of a 200 of at most `most` bytes."""
        name = self._name(method, path)
        deadline = time.monotonic() + self._timeout_s
        with self._lock, self._errors(name):
            try:
                response = self._send(method, path, body)
                data = self._read(response, most, deadline)
            except BaseException:
                self._connection.close()  # an answer half read would be taken for the next one's
                raise
        if response.status != 200:
            raise BadStatusError(name, response.status, data[:300].decode("utf-8", "replace"))
        if len(data) > most:
            raise BadAnswerError(name, f"expected at most {most} bytes, got more")
        return data

    def _send(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        headers = self._headers if body is None else self._headers | {"Content-Type": MSGPACK}
        reused = self._connection.sock is not None
        try:
            self._connection.request(method, self._prefix + path, body, headers)
            return self._connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A server may close an idle connection at any time. Every call can be repeated: events carry ids.
            self._connection.close()
            if not reused:
                raise
        self._connection.request(method, self._prefix + path, body, headers)
        return self._connection.getresponse()

    def _read(self, response: http.client.HTTPResponse, most: int, deadline: float) -> bytes:
        """The body, or its first bytes beyond `most`; the connection is closed when some of it was left."""
        parts: list[bytes] = []
        size = 0
        while size <= most:
            part = response.read1(min(_CHUNK, most + 1 - size))
            if not part:
                # `read1` ends quietly when the server hangs up early.
                if response.length:
                    raise http.client.IncompleteRead(b"".join(parts), response.length)
                response.close()  # `read1` leaves that to us; the connection is then free for the next call
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no whole answer in {self._timeout_s} s")
        self._connection.close()
        return b"".join(parts)

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except http.client.IncompleteRead as err:
            raise UnreachableError(name, "the connection broke within the answer") from err
        except (http.client.RemoteDisconnected, OSError) as err:  # TimeoutError and ssl errors among them
            raise UnreachableError(name, str(err) or type(err).__name__) from err
        except (http.client.HTTPException, ValueError) as err:
            raise BadAnswerError(name, f"expected HTTP, got {type(err).__name__} {err}") from err


def _install(new: Path, folder: Path) -> None:
    """Put `new` in `folder`'s place. What was there comes back when that fails."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old / "bundle")
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old / "bundle", folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
