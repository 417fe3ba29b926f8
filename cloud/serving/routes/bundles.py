"""Routes by which devices download the bundle.

::

    GET  /v1/bundle/manifest.json  the bundle's manifest
    GET  /v1/bundle/manifest.sig   its signatures
    GET  /v1/bundle/release.json   the release: which bundle is current, and for which devices
    GET  /v1/bundle/files/{path}   a file that the manifest names, or ranges of it

The SHA-256 of a body is its ETag. A path may have another file tomorrow, so caches must revalidate; a download that was cut off
continues with `Range` and `If-Range`.
"""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, MalformedRangeHeader, Response

from pocketrank.cloud.serving.access.access import Access
from pocketrank.cloud.serving.bundles.files import BundleFile, BundleFiles, BundleFilesError, ServedBundle
from pocketrank.cloud.serving.bundles.store import BundleRepository
from pocketrank.cloud.serving.http.openapi import errors
from pocketrank.cloud.serving.http.wire import JSON, WireError

__all__ = ["CurrentBundle", "bundle_routes"]

_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The body that `If-None-Match` names."}}
_RANGES: dict[int | str, dict[str, Any]] = {
    206: {"description": "The ranges of the file that `Range` names."},
    **_NOT_MODIFIED,
    416: {"description": "The file ends before the first byte that `Range` names."},
    503: {"description": "The file is damaged on the server's disk."},
}

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
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return None


class _RangesResponse(FileResponse):
    """`FileResponse` that ignores a `Range` it cannot read, as RFC 9110 (14.2) says; Starlette answers 400 in plain text."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        # Starlette has no public way to do so. Its version is pinned, and a test of these headers fails if the method moves.
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []  # the whole file
