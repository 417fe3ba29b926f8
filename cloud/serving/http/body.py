"""Bodies of requests, read with a limit of size and of time, and decompressed as they arrive.

The size limit also holds for the decompressed body: at most one byte more than the limit is ever decompressed.
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

_ALIASES = {"x-gzip": "gzip", "": "identity"}
"""Names that mean the same: RFC 9110 (8.4.1.3) asks for the first, and an empty header names no coding."""
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class BodyReader:
    """Reader of bodies that have at most `bytes_max` bytes and arrive within `seconds`."""

    def __init__(self, bytes_max: int, seconds: float) -> None:
        self._bytes_max, self._seconds = bytes_max, seconds

    async def __call__(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Return the body, decompressed.

        Raises `WireError`: 413 too large, before anything is read when Content-Length says so; 415 unsupported encoding; 400
        not in the encoding that the header names; 408 too slow (`SlowBodyError`). Raises starlette's `ClientDisconnect`.
        """
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        encoding = _ALIASES.get(encoding, encoding)
        if encoding not in ENCODINGS:
            raise WireError(415, "content-encoding", f"one of {', '.join(ENCODINGS)}", f"`{encoding[:64]}`")
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
        body, unpack = bytearray(), None if encoding == "identity" else zlib.decompressobj(_WINDOW[encoding])
        while True:
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            assert isinstance(chunk, bytes)
            if unpack is None:
                body += chunk
            else:
                try:
                    body += unpack.decompress(chunk, self._bytes_max + 1 - len(body))
                except zlib.error as error:
                    raise WireError(400, "$", f"a body in {encoding}", str(error)) from None
                if unpack.unused_data:
                    raise WireError(400, "$", f"one {encoding} stream", "more after its end")
            self._check(len(body))
            if not message.get("more_body", False):
                break
            message = await receive()
        if unpack is not None and not unpack.eof:
            raise WireError(400, "$", f"a whole body in {encoding}", "a part of it")
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self._bytes_max:
            raise WireError(413, "$", f"at most {self._bytes_max} bytes", "more")
