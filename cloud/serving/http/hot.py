"""The two routes that every device calls, in plain ASGI before the routes of FastAPI.

A request passes, in this order: the token and the caller's rate, the line's length, the body, the contract; then its work.
Whatever is refused is refused before it has had an effect.
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
from pocketrank.cloud.serving.telemetry.logs import AccessLog, RequestInfo, current_request, note_error, request_id_of
from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics, method_label
from pocketrank.cloud.serving.telemetry.tracing import RequestTracer

__all__ = ["HotRoute", "HotRoutes"]

_logger = logging.getLogger(__name__)


class HotRoute:
    """What `POST` to a path does, for tokens of the scope `device`."""

    def __init__(
        self,
        struct: type[msgspec.Struct],
        work: Callable[[Any, float], Awaitable[msgspec.Struct]],
        enter: Callable[[], None] = lambda: None,
        observe: Callable[[str, float], None] = lambda stage, seconds: None,
    ) -> None:
        """`work` is given the `struct` of the body and when the request came; `enter` may refuse it before the body is read.

        `observe` is told how long `decode` and `encode` took.
        """
        self.struct, self.work, self.enter, self.observe = struct, work, enter, observe


class HotRoutes:
    """`routes` by path; everything else goes to `app`. Does for its routes what `ObserveRequests` does for others."""

    def __init__(
        self,
        app: ASGIApp,
        routes: Mapping[str, HotRoute],
        *,
        access: Access,
        read: BodyReader,
        metrics: ServingMetrics,
        log: AccessLog,
        tracer: RequestTracer,
    ) -> None:
        self._app, self._routes = app, dict(routes)
        self._access, self._read = access, read
        self._metrics, self._log, self._tracer = metrics, log, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        since, request = perf_counter(), RequestInfo(request_id_of(scope["headers"]))
        before = current_request.set(request)
        try:
            if self._tracer.enabled:
                with self._tracer.trace_page(scope["headers"], scope["path"]):
                    status, headers, body = await self._answer(route, scope, receive, since)
                    self._tracer.answered(status, request.id)
            else:
                status, headers, body = await self._answer(route, scope, receive, since)
            headers.append((b"x-request-id", request.id.encode()))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            seconds, method = perf_counter() - since, method_label(scope["method"])
            self._metrics.request(scope["path"], method, status, seconds)
            self._log(method, scope["path"], status, seconds, request.error)
        finally:
            current_request.reset(before)

    async def _answer(
        self, route: HotRoute, scope: Scope, receive: Receive, since: float
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        try:
            self._access(scope, "device")
            if scope["method"] != "POST":
                raise WireError(405, "method", "`POST`", f"`{scope['method'][:64]}`", {"Allow": "POST"})
            route.enter()
            head: dict[bytes, bytes] = dict(scope["headers"])
            kind = content_type(head.get(b"content-type"))
            body = await self._read(head, receive)
            started = perf_counter()
            asked = decode(kind, body, route.struct)
            route.observe("decode", perf_counter() - started)
            answer = await route.work(asked, since)
            started = perf_counter()
            kind, body = encode(head.get(b"accept"), answer)
            route.observe("encode", perf_counter() - started)
            status, more = 200, []
        except Exception as error:
            note_error(error)
            status, told, body = error_answer(error, scope["method"], scope["path"])
            if status == 500:
                _logger.exception("%s failed", scope["path"])
            kind, more = JSON, [(name.lower().encode(), value.encode("latin-1")) for name, value in told.items()]
        return status, [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), *more], body
