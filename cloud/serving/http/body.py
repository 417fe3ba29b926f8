"""Bodies of requests, read with a limit of size and of time, and decompressed as they arrive.

The size limit also holds for the decompressed body: at most one byte more than the limit is ever decompressed. A body in gzip
may have several members (RFC 1952, 2.2), and one in deflate may lack the head of zlib, which some clients leave out.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from pocketrank.cloud.serving.http.wire import SlowBodyError, WireError

__all__ = ["ENCODINGS", "BodyReader"]

ENCODINGS = ("identity", "gzip", "deflate")
"""Supported content codings (RFC 9110, 8.4.1)."""

_ALIASES = {"x-gzip": "gzip"}  # RFC 9110, 8.4.1.3
_NONE = ("", "identity")
_MEMBERS_MAX = 100
"""Members of a body in gzip. Each copies what follows it in its chunk."""


class BodyReader:
    """Reader of bodies that have at most `bytes_max` bytes and arrive within `seconds`."""

    def __init__(self, bytes_max: int, seconds: float) -> None:
        self._bytes_max, self._seconds = bytes_max, seconds

    async def __call__(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Return the body, decompressed.

        Raises `WireError`: 413 too large, before anything is read when Content-Length says so; 415 unsupported encoding; 400
        not in the encoding that the header names; 408 too slow (`SlowBodyError`). Raises starlette's `ClientDisconnect`.
        """
        encoding = _coding(headers[b"content-encoding"]) if b"content-encoding" in headers else "identity"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._bytes_max:
            raise WireError(413, "content-length", f"at most {self._bytes_max} bytes", f"{length.decode()[:20]} bytes")
        try:
            async with asyncio.timeout(self._seconds):  # also for the first byte
                return await self._body(receive, encoding)
        except TimeoutError:
            raise SlowBodyError(f"a body within {self._seconds:g} s", "a part of it") from None

    async def _body(self, receive: Receive, encoding: str) -> bytes:
        message = await receive()
        if encoding == "identity" and message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")  # most bodies arrive whole, right after their headers
            self._check(len(body))
            return body
        return await self._rest(message, receive, encoding)

    async def _rest(self, message: Mapping[str, object], receive: Receive, encoding: str) -> bytes:
        body, members = bytearray(), 0
        unpack: zlib._Decompress | None = None
        while True:
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            assert isinstance(chunk, bytes)
            if encoding == "identity":
                body += chunk
            while chunk and encoding != "identity":
                if unpack is None or unpack.eof:
                    if members == (_MEMBERS_MAX if encoding == "gzip" else 1):
                        raise WireError(400, "$", f"at most {members} {encoding} streams", "more after their end")
                    unpack, members = _unpacker(encoding, chunk), members + 1
                try:
                    body += unpack.decompress(chunk, self._bytes_max + 1 - len(body))
                except zlib.error as error:
                    raise WireError(400, "$", f"a body in {encoding}", str(error)) from None
                self._check(len(body))
                chunk = unpack.unused_data
            self._check(len(body))
            if not message.get("more_body", False):
                break
            message = await receive()
        if encoding != "identity" and (unpack is None or not unpack.eof):
            raise WireError(400, "$", f"a whole body in {encoding}", "a part of it")
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self._bytes_max:
            raise WireError(413, "$", f"at most {self._bytes_max} bytes", "more")


def _coding(header: bytes) -> str:
    """Return the one coding that a header names. Raises `WireError` (415) for another one, or for several."""
    text = header.decode("latin-1").lower()
    named = [_ALIASES.get(name, name) for one in text.split(",") if (name := one.strip()) not in _NONE]
    if len(named) > 1 or not set(named) <= set(ENCODINGS):
        raise WireError(415, "content-encoding", f"one of {', '.join(ENCODINGS)}", f"`{text[:64]}`")
    return named[0] if named else "identity"


def _unpacker(encoding: str, begin: bytes) -> zlib._Decompress:
    """Return a new decompressor for a stream that begins with these bytes, of which there is at least one."""
    if encoding == "gzip":
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    has_head = begin[0] & 15 == zlib.DEFLATED
    return zlib.decompressobj(zlib.MAX_WBITS if has_head else -zlib.MAX_WBITS)
