"""Routes by which devices download the bundle, and a new one is uploaded to a running server.

::

    GET  /v1/bundle/manifest.json  the bundle's manifest
    GET  /v1/bundle/manifest.sig   its signatures
    GET  /v1/bundle/release.json   the release: which bundle is current, and for which devices
    GET  /v1/bundle/files/{path}   a file that the manifest names, or ranges of it
    PUT  /v1/bundle                BundlePublish -> BundleReceipt; 409 names the files that are missing
    PUT  /v1/bundle/blobs/{sha256} one of them, as its raw bytes
    POST /v1/bundle/rollback       serve the bundle of before the last PUT again; for an admin

The SHA-256 of a body is its ETag. A path may have another file tomorrow, so caches must revalidate; a download that was cut off
continues with `Range` and `If-Range`.

A client that uploads sends the manifest, uploads the files that are missing, and repeats the first request. So files of the
last bundle are not sent again, and an upload that broke off continues where it was. Only the last request changes what is
served.
"""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, MalformedRangeHeader, Response
from starlette.types import Receive, Scope, Send

from pocketrank.cloud.serving.access.access import REFUSALS, Access
from pocketrank.cloud.serving.bundles.files import BundleFile, BundleFiles, BundleFilesError, ServedBundle
from pocketrank.cloud.serving.bundles.publish import (
    PUBLISH_BYTES_MAX,
    BundlePublish,
    BundleReceipt,
    MissingFilesBody,
    MissingFilesError,
    receipt_of,
)
from pocketrank.cloud.serving.bundles.store import BundleRepository
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.head import is_head
from pocketrank.cloud.serving.http.openapi import content_of, errors
from pocketrank.cloud.serving.http.wire import JSON, MSGPACK, SlowBodyError, WireError, content_type, decode
from pocketrank.device.codec import from_json
from pocketrank.device.contract import BundleManifest

__all__ = ["CurrentBundle", "bundle_routes", "upload_routes"]

_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The body that `If-None-Match` names."}}
_RANGES: dict[int | str, dict[str, Any]] = {
    206: {"description": "The ranges of the file that `Range` names."},
    **_NOT_MODIFIED,
    416: {"description": "The file ends before the first byte that `Range` names."},
    503: {"description": "The file is damaged on the server's disk."},
}
_UPLOAD_ERRORS = {
    400: "An invalid manifest, a serial of the future, or a file that is not as announced.",
    **REFUSALS,
    403: "A token without the scope that this route requires, or a bundle without the signatures that the server requires.",
    408: "The body stopped arriving.",
    409: "Files are missing, the split version is not served, or the bundle is no newer than the served one.",
    411: "No Content-Length.",
    413: "Too large.",
    415: "An unsupported content type, or a compressed body.",
    503: "The disk failed; what was served still is.",
    507: "No space left; what was served still is.",
}
_BYTES = "application/octet-stream"
_DISK_BATCH = 1 << 20  # bytes that a thread writes to the disk at once

_logger = logging.getLogger(__name__)


class CurrentBundle:
    """The bundle that is served: the last one that was uploaded or, before the first upload, the one in a plain folder."""

    def __init__(self, folder: BundleFiles | None, store: BundleRepository | None) -> None:
        self._folder, self._store = folder, store

    async def __call__(self) -> ServedBundle:
        """Return the bundle. Raises `WireError` (404) when there is none."""
        found = await self.maybe()
        if found is None:
            raise WireError(404, "url", "a server that has a bundle", "one without")
        return found

    async def maybe(self) -> ServedBundle | None:
        """Return the bundle, or None when there is none."""
        stored = None
        if self._store is not None:
            loaded = self._store.is_loaded()
            stored = self._store.current() if loaded else await run_in_threadpool(self._store.current)
        if stored is None and self._folder is not None:
            return self._folder.current()
        return stored


def bundle_routes(current: CurrentBundle, access: Access) -> APIRouter:
    """Return the routes, for tokens with the scope `device`."""
    router = APIRouter(dependencies=[access.requires("device")], responses=errors(401, 403, 404, 429))

    @router.get("/v1/bundle/manifest.json", response_class=Response, responses=_NOT_MODIFIED)
    async def bundle_manifest(request: Request) -> Response:
        """Return the manifest of the bundle. 404 when the server has none."""
        return _text(request, (await current()).texts.manifest, "a manifest")

    @router.get("/v1/bundle/manifest.sig", response_class=Response, responses=_NOT_MODIFIED)
    async def bundle_signatures(request: Request) -> Response:
        """Return the signatures of the manifest. 404 when the bundle is not signed."""
        return _text(request, (await current()).texts.signatures, "a signed bundle")

    @router.get("/v1/bundle/release.json", response_class=Response, responses=_NOT_MODIFIED)
    async def bundle_release(request: Request) -> Response:
        """Return the signed release. 404 when the bundle was not released."""
        return _text(request, (await current()).texts.release, "a bundle that was released")

    @router.get("/v1/bundle/files/{path:path}", response_class=Response, responses=_RANGES)
    async def bundle_file(request: Request, path: str) -> Response:
        """Return a file that the manifest names, or the ranges of it that `Range` names. 404 for any other path."""
        file = (await current()).files.get(path)
        if file is None:
            raise WireError(404, "url", "a path of the manifest", f"`{path[:200]}`")
        return await _file(request, file)

    return router


def _text(request: Request, text: bytes | None, expected: str) -> Response:
    if text is None:
        raise WireError(404, "url", expected, "one that is not")
    headers = _headers(sha256(text).hexdigest())
    return _not_modified(request, headers) or Response(text, headers=headers, media_type=JSON)


async def _file(request: Request, file: BundleFile) -> Response:
    try:
        status = await run_in_threadpool(file.check)
    except (BundleFilesError, OSError) as error:
        _logger.error("A file of the bundle is damaged: %s", error)
        raise WireError(503, "url", "a whole file on the server's disk", "a damaged file") from error
    headers = _headers(file.entry.sha256)
    return _not_modified(request, headers) or _RangesResponse(
        file.path, headers=headers, media_type="application/octet-stream", stat_result=status
    )


def _headers(digest: str) -> dict[str, str]:
    return {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}


def _not_modified(request: Request, headers: dict[str, str]) -> Response | None:
    # A list, or `*`, and each tag perhaps weak, because a cache compressed the body (RFC 9110, 13.1.2).
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if headers["ETag"] in tags or tags == ["*"]:
        return Response(status_code=304, headers=headers)
    return None


class _RangesResponse(FileResponse):
    """`FileResponse` that ignores a `Range` it cannot read, as RFC 9110 (14.2) says; Starlette answers 400 in plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__({**scope, "method": "HEAD"} if is_head(scope) else scope, receive, send)  # reads no file then

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        # Starlette has no public way to do so. Its version is pinned, and a test of these headers fails if the method moves.
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []  # the whole file


def upload_routes(store: BundleRepository, current: CurrentBundle, access: Access, stall_s: float) -> APIRouter:
    """Return the routes over `store`, for tokens with the scope `publish`, and `admin` to roll back. They raise `WireError`.

    `current` is what is served, from `store` or not. `stall_s` is the longest wait for the next bytes of a file.
    """
    router, publishes = APIRouter(), [access.requires("publish")]
    limits = access.limits.config
    read = BodyReader(PUBLISH_BYTES_MAX, stall_s)

    @router.put(
        "/v1/bundle",
        dependencies=publishes,
        response_class=Response,
        responses={
            200: {"description": "Served from now on.", "content": content_of(BundleReceipt, JSON)},
            **errors(400, 401, 403, 408, 413, 415, 429, 503, 507, descriptions=_UPLOAD_ERRORS),
            409: {"description": _UPLOAD_ERRORS[409], "content": content_of(MissingFilesBody, JSON)},
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
            return _missing(error)
        return Response(msgspec.json.encode(receipt), media_type=JSON)

    @router.post(
        "/v1/bundle/rollback",
        dependencies=[access.requires("admin")],
        response_class=Response,
        responses={
            200: {"description": "The bundle that is served now.", "content": content_of(BundleReceipt, JSON)},
            204: {"description": "No bundle is served now: the first one was rolled back."},
            **errors(400, 401, 403, 429, 503, descriptions=_UPLOAD_ERRORS),
            409: {
                "description": "There is no bundle of before, or it is not usable.",
                "content": content_of(MissingFilesBody, JSON),
            },
        },
    )
    async def roll_back_bundle() -> Response:
        """Serve the bundle again that was served before the last upload; once after each upload."""
        try:
            await run_in_threadpool(store.rollback)
        except MissingFilesError as error:
            return _missing(error)
        served = await current.maybe()
        if served is None:
            return Response(status_code=204)
        receipt = receipt_of(served.texts, from_json(served.texts.manifest, BundleManifest))
        return Response(msgspec.json.encode(receipt), media_type=JSON)

    @router.put(
        "/v1/bundle/blobs/{sha256}",
        dependencies=publishes,
        response_class=Response,
        status_code=204,
        response_description="Stored.",
        responses=errors(400, 401, 403, 408, 411, 413, 415, 429, 503, 507, descriptions=_UPLOAD_ERRORS),
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


def _missing(error: MissingFilesError) -> Response:
    body = MissingFilesBody(error=str(error), path=error.path, expected=error.expected, got=error.got, missing=error.missing)
    return Response(msgspec.json.encode(body), error.status, media_type=JSON)


def _announced_size(request: Request, bytes_max: int) -> int:
    kind = request.headers.get("content-type", _BYTES)
    if (
        kind.partition(";")[0].strip().lower() != _BYTES
        or request.headers.get("content-encoding", "identity").lower() != "identity"
    ):
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
        raise SlowBodyError(f"more bytes within {stall_s:g} s", "none") from None
    return b""
