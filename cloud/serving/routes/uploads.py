"""Routes by which a bundle is uploaded to a running server.

::

    PUT /v1/bundle                 BundlePublish -> BundleReceipt; 409 names the files that are missing
    PUT /v1/bundle/blobs/{sha256}  one of them, as its raw bytes

The client sends the first request, uploads the files that are missing, and repeats it. So files of the last bundle are not sent
again, and an upload that broke off continues where it was. Only the last request changes what is served.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pocketrank.cloud.serving.access.access import REFUSALS, Access
from pocketrank.cloud.serving.bundles.publish import (
    PUBLISH_BYTES_MAX,
    BundlePublish,
    BundleReceipt,
    MissingFilesBody,
    MissingFilesError,
)
from pocketrank.cloud.serving.bundles.store import BundleRepository
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.openapi import content_of, errors
from pocketrank.cloud.serving.http.wire import JSON, MSGPACK, WireError, content_type, decode

__all__ = ["upload_routes"]

_BYTES = "application/octet-stream"
_DISK_BATCH = 1 << 20  # bytes that a thread writes to the disk at once


_DESCRIPTIONS = {
    400: "An invalid manifest, or a file that is not as announced.",
    **REFUSALS,
    408: "The body stopped arriving.",
    409: "Files are missing, the split version is not served, or the bundle is no newer than the served one.",
    411: "No Content-Length.",
    413: "Too large.",
    415: "An unsupported content type, or a compressed body.",
    503: "The disk failed; what was served still is.",
    507: "No space left; what was served still is.",
}


def upload_routes(store: BundleRepository, access: Access, stall_s: float) -> APIRouter:
    """Return the routes over `store`, for tokens with the scope `publish`. They raise `WireError`.

    `stall_s` is the longest wait for the next bytes of a file.
    """
    router = APIRouter(dependencies=[access.requires("publish")])
    limits = access.limits.config
    read = BodyReader(PUBLISH_BYTES_MAX, stall_s)

    @router.put(
        "/v1/bundle",
        response_class=Response,
        responses={
            200: {"description": "Served from now on.", "content": content_of(BundleReceipt, JSON)},
            **errors(400, 401, 403, 408, 413, 415, 429, 503, 507, descriptions=_DESCRIPTIONS),
            409: {"description": _DESCRIPTIONS[409], "content": content_of(MissingFilesBody, JSON)},
        },
        openapi_extra={"requestBody": {"required": True, "content": content_of(BundlePublish, JSON, MSGPACK)}},
    )
    async def publish_bundle(request: Request) -> Response:
        """Serve this bundle from now on. 409 when files of its manifest must be uploaded first, or when it is no newer."""
        headers = dict(request.scope["headers"])
        kind = content_type(headers.get(b"content-type"))
        publish = decode(kind, await read(headers, request.receive), BundlePublish)
        try:
            receipt = await run_in_threadpool(store.commit, publish)
        except MissingFilesError as error:
            body = MissingFilesBody(
                error=str(error), path=error.path, expected=error.expected, got=error.got, missing=error.missing
            )
            return Response(msgspec.json.encode(body), error.status, media_type=JSON)
        return Response(msgspec.json.encode(receipt), media_type=JSON)

    @router.put(
        "/v1/bundle/blobs/{sha256}",
        response_class=Response,
        status_code=204,
        response_description="Stored.",
        responses=errors(400, 401, 403, 408, 411, 413, 415, 429, 503, 507, descriptions=_DESCRIPTIONS),
        openapi_extra={
            "requestBody": {"required": True, "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}
        },
    )
    async def upload_file(request: Request, sha256: str) -> Response:
        """Store a file of a bundle under its digest. It is not served before a published manifest names it."""
        size = _announced_size(request, min(limits.publish_bytes, store.config.bundle_bytes_max))
        if not await run_in_threadpool(store.has, sha256):
            await _receive(request, store, sha256, size, stall_s)
        return Response(status_code=204)

    return router


def _announced_size(request: Request, bytes_max: int) -> int:
    kind = request.headers.get("content-type", _BYTES)
    if kind.partition(";")[0].strip().lower() != _BYTES or request.headers.get("content-encoding", "identity") != "identity":
        raise WireError(415, "content-type", f"`{_BYTES}`, not encoded", f"`{kind[:64]}`")
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal() and len(length) < 20):
        raise WireError(411, "content-length", "the file's size in bytes", f"`{length[:64]}`")
    if int(length) > bytes_max:
        raise WireError(413, "content-length", f"at most {bytes_max} bytes", f"{length[:32]} bytes")
    return int(length)


async def _receive(request: Request, store: BundleRepository, sha256: str, size: int, stall_s: float) -> None:
    arriving = store.incoming(sha256, size)
    new = await run_in_threadpool(arriving.__enter__)
    try:
        batch, chunks = bytearray(), request.stream().__aiter__()
        while chunk := await _next(chunks, stall_s):
            batch += chunk
            if len(batch) >= _DISK_BATCH:
                await run_in_threadpool(new.write, bytes(batch))
                batch.clear()
        await run_in_threadpool(new.write, bytes(batch))
    except BaseException as error:
        # Also when the server stops. Not in a thread, because a cancelled task cannot wait for one.
        arriving.__exit__(type(error), error, error.__traceback__)
        raise
    await run_in_threadpool(arriving.__exit__, None, None, None)


async def _next(chunks: Any, stall_s: float) -> bytes:
    try:
        async with asyncio.timeout(stall_s):
            async for chunk in chunks:
                if chunk:
                    return bytes(chunk)
    except TimeoutError:
        raise WireError(408, "$", f"more bytes within {stall_s:g} s", "none") from None
    return b""
