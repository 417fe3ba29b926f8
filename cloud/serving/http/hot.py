"""Every request as it is observed, and the routes that every device calls.

The id, the trace, the metrics and the line in the access log of each request are made here. The hot routes are answered here,
too, because FastAPI's routing and validation cost more than a page's HTTP. Such a request passes these checks in this order:
its token and the rate of its caller, the length of the queue, its body, the contract. A request that is refused has had no
effect.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketrank.cloud.serving.access.access import Access, Caller
from pocketrank.cloud.serving.access.limits import cost_of_body
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.head import head_as_get
from pocketrank.cloud.serving.http.own_ids import WireIds
from pocketrank.cloud.serving.http.wire import JSON, WireError, answer_type, content_type, decode, encode, error_answer
from pocketrank.cloud.serving.load.page_queue import BusyError
from pocketrank.cloud.serving.telemetry.logs import AccessLog, RequestInfo, current_request, request_id_of
from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics, method_label, route_label
from pocketrank.cloud.serving.telemetry.tracing import RequestTracer

__all__ = ["HotRoute", "HotRoutes"]

_logger = logging.getLogger(__name__)
_UNTRACED = nullcontext()


class HotRoute(NamedTuple):
    """Route for `POST` with a token of the scope `device`."""

    struct: type[msgspec.Struct]
    """The struct of the body."""
    work: Callable[[Any, float, Caller], Awaitable[msgspec.Struct]]
    """Returns the answer to a `struct`, the `perf_counter` at the request's arrival, and its sender."""
    enter: Callable[[], None] = lambda: None
    """May raise `WireError` before the body is read."""
    observe: Callable[[str, float], None] = lambda stage, seconds: None
    """Gets the seconds that `decode` and `encode` took."""
    own: tuple[WireIds, type[msgspec.Struct]] | None = None
    """Reader of own ids, and the struct of a body that has them; None where all ids are codes."""


class HotRoutes:
    """ASGI application that answers the paths of `routes` itself and passes any other request to `app`.

    Every answer carries its `X-Request-Id`. Plain ASGI, because Starlette's BaseHTTPMiddleware alone costs twice what the rest
    of a small answer does. `labels` are those of `route_label`.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Mapping[str, HotRoute],
        metrics: ServingMetrics,
        labels: dict[str, str],
        *,
        access: Access,
        read: BodyReader,
        access_log: AccessLog | None = None,
        tracer: RequestTracer | None = None,
    ) -> None:
        self._app, self._routes, self._access, self._read = app, dict(routes), access, read
        self._metrics, self._labels = metrics, labels
        self._access_log, self._tracer = access_log or AccessLog(), tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on with everything else that ASGI sends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 500
        request = RequestInfo(request_id_of(scope["headers"]))
        before = current_request.set(request)
        label, method = route_label(scope["path"], self._labels), method_label(scope["method"])
        route = self._routes.get(scope["path"])

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request.id.encode())]
            await send(message)

        try:
            with _UNTRACED if self._tracer is None else self._tracer.trace_page(scope["headers"], label):
                try:
                    if route is None:
                        await self._app(head_as_get(scope), receive, observed_send)
                    else:
                        await self._answer(route, request, scope, receive, observed_send)
                finally:
                    if self._tracer is not None:
                        self._tracer.answered(status, request.id)
        except BaseException as error:
            request.error = type(error).__name__
            raise
        finally:
            seconds = perf_counter() - started
            self._metrics.request(label, method, status, seconds)
            self._access_log(method, label, status, seconds, request.error)
            current_request.reset(before)

    async def _answer(self, route: HotRoute, request: RequestInfo, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            kind, body = await self._made(route, scope, receive)
        except Exception as error:
            request.error = type(error).__name__
            if isinstance(error, BusyError):
                self._metrics.shed(error.reason)
            response = error_answer(error, scope["method"], scope["path"])
            if response.status_code == 500:
                _logger.exception("%s failed", scope["path"])
            await response(scope, receive, send)
            return
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _made(self, route: HotRoute, scope: Scope, receive: Receive) -> tuple[str, bytes]:
        """Return the content type and the body of the answer."""
        since = perf_counter()
        caller = self._access(scope, "device")
        if scope["method"] != "POST":
            raise WireError(405, "method", "`POST`", f"`{scope['method'][:64]}`", {"Allow": "POST"})
        route.enter()
        head: dict[bytes, bytes] = dict(scope["headers"])
        kind = content_type(head.get(b"content-type"))
        body = await self._read(head, receive)
        self._access.charge(caller, cost_of_body(body))
        started = perf_counter()
        ids, texts = route.own or (None, route.struct)
        request = decode(kind, body, route.struct) if ids is None else ids.decode(kind, body, route.struct, texts)
        route.observe("decode", perf_counter() - started)
        answer = await route.work(request, since, caller)
        started = perf_counter()
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")  # it may come in several lines
        kind = answer_type(accept)
        if ids is not None and (kind == JSON or request.own_ids is True):  # type: ignore[attr-defined]
            answer = ids.keyed(request, answer)
        body = encode(kind, answer)
        route.observe("encode", perf_counter() - started)
        return kind, body
