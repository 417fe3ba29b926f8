"""The two routes that every device calls, in plain ASGI, because FastAPI's routing and validation cost more than a page's HTTP.

A request passes these checks in this order: its token and the rate of its caller, the length of the queue, its body, the
contract. A request that is refused has had no effect.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketrank.cloud.serving.access.access import Access
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.wire import JSON, WireError, content_type, decode, encode, error_answer
from pocketrank.cloud.serving.telemetry.logs import note_error

__all__ = ["HotRoute", "HotRoutes"]

_logger = logging.getLogger(__name__)


class HotRoute:
    """Route for `POST` with a token of the scope `device`."""

    def __init__(
        self,
        struct: type[msgspec.Struct],
        work: Callable[[Any, float], Awaitable[msgspec.Struct]],
        enter: Callable[[], None] = lambda: None,
        observe: Callable[[str, float], None] = lambda stage, seconds: None,
    ) -> None:
        """`work` gets the `struct` of the body and the `perf_counter` at the request's arrival, and returns the answer.

        `enter` may raise `WireError` before the body is read. `observe` gets the seconds that `decode` and `encode` took.
        """
        self.struct, self.work, self.enter, self.observe = struct, work, enter, observe


class HotRoutes:
    """ASGI application that answers the paths of `routes` itself and passes any other request to `app`."""

    def __init__(self, app: ASGIApp, routes: Mapping[str, HotRoute], *, access: Access, read: BodyReader) -> None:
        self._app, self._routes, self._access, self._read = app, dict(routes), access, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on with everything else that ASGI sends."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = []
        try:
            kind, body = await self._answer(route, scope, receive)
            status = 200
        except Exception as error:
            note_error(error)
            status, error_headers, body = error_answer(error, scope["method"], scope["path"])
            if status == 500:
                _logger.exception("%s failed", scope["path"])
            kind = JSON
            headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in error_headers.items()]
        headers += ((b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, route: HotRoute, scope: Scope, receive: Receive) -> tuple[str, bytes]:
        """Return the content type and the body of the answer."""
        since = perf_counter()
        self._access(scope, "device")
        if scope["method"] != "POST":
            raise WireError(405, "method", "`POST`", f"`{scope['method'][:64]}`", {"Allow": "POST"})
        route.enter()
        head: dict[bytes, bytes] = dict(scope["headers"])
        kind = content_type(head.get(b"content-type"))
        body = await self._read(head, receive)
        started = perf_counter()
        request = decode(kind, body, route.struct)
        route.observe("decode", perf_counter() - started)
        answer = await route.work(request, since)
        started = perf_counter()
        kind, body = encode(head.get(b"accept"), answer)
        route.observe("encode", perf_counter() - started)
        return kind, body
