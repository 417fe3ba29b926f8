"""How devices download the bundle.

::

    GET  /v1/bundle/manifest.json  the bundle's manifest
    GET  /v1/bundle/manifest.sig   its signatures
    GET  /v1/bundle/release.json   which bundle is current, for whom
    GET  /v1/bundle/files/{path}   a file that the manifest names, or a range of it
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pocketrank.cloud.serving.access.access import Access
from pocketrank.cloud.serving.bundles.files import BundleFile, BundleFiles
from pocketrank.cloud.serving.bundles.store import BundleRepository, StoredBundle
from pocketrank.cloud.serving.http.openapi import errors
from pocketrank.cloud.serving.http.wire import JSON, WireError

__all__ = ["CurrentBundle", "bundle_routes"]

_RANGES: dict[int | str, dict[str, Any]] = {
    206: {"description": "The file from the byte on that `Range` asked for."},
    304: {"description": "The file that `If-None-Match` names."},
    416: {"description": "The file ends before that byte."},
}


class CurrentBundle:
    """The bundle that is served: the one that was uploaded last, or `files` until there is one."""

    def __init__(self, files: BundleFiles | None, store: BundleRepository | None) -> None:
        self._files, self._store = files, store

    async def __call__(self) -> BundleFiles | StoredBundle:
        """Raises `WireError` (404) when there is none."""
        found = await self.maybe()
        if found is None:
            raise WireError(404, "url", "a server that has a bundle", "one without")
        return found

    async def maybe(self) -> BundleFiles | StoredBundle | None:
        """None when there is none."""
        stored = None
        if self._store is not None:
            fresh = self._store.fresh()
            stored = self._store.current() if fresh else await run_in_threadpool(self._store.current)
        return stored or self._files


def bundle_routes(current: CurrentBundle, access: Access) -> APIRouter:
    """The routes, for tokens with the scope `device`."""
    router = APIRouter(dependencies=[access.requires("device")], responses=errors(401, 403, 404, 429))

    @router.get("/v1/bundle/manifest.json", response_class=Response, responses=_RANGES)
    async def bundle_manifest(request: Request) -> Response:
        """The manifest of the bundle. 404 when the server has none."""
        return _file(request, (await current()).manifest, JSON)

    @router.get("/v1/bundle/manifest.sig", response_class=Response, responses=_RANGES)
    async def bundle_signatures(request: Request) -> Response:
        """The manifest's signatures. 404 when the bundle is not signed."""
        return _optional(request, (await current()).signatures, "a signed bundle")

    @router.get("/v1/bundle/release.json", response_class=Response, responses=_RANGES)
    async def bundle_release(request: Request) -> Response:
        """The signed release of now. 404 when there is none."""
        return _optional(request, (await current()).release(), "a bundle that was released")

    @router.get("/v1/bundle/files/{path:path}", response_class=Response, responses=_RANGES)
    async def bundle_file(request: Request, path: str) -> Response:
        """A file that the manifest names, with its SHA-256 as ETag; from some byte on when `Range` says so. 404 for every other
        path.
        """
        found = (await current()).get(path)
        if found is None:
            raise WireError(404, "url", "a path of the manifest", f"`{path[:200]}`")
        return _file(request, found, "application/octet-stream")

    return router


def _optional(request: Request, file: BundleFile | None, expected: str) -> Response:
    if file is None:
        raise WireError(404, "url", expected, "one that is not")
    return _file(request, file, JSON)


def _file(request: Request, file: BundleFile, media_type: str) -> Response:
    tag = f'"{file.sha256}"'
    # ask again each time; the tag makes that cheap
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Accept-Ranges": "bytes"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    # One range to the end, which is how a download goes on; HTTP allows to answer any other with the whole.
    asked = re.fullmatch(r"bytes=(\d{1,15})-", request.headers.get("range", ""), re.ASCII)
    if asked is None or request.headers.get("if-range", tag) != tag:
        return Response(file.data, headers=headers, media_type=media_type)
    start, size = int(asked[1]), len(file.data)
    if start >= size:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    return Response(file.data[start:], 206, headers, media_type=media_type)
