"""Observation of every request: its id, its trace, its metrics and its line in the access log."""

from __future__ import annotations

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketrank.cloud.serving.telemetry.logs import AccessLog, RequestInfo, current_request, note_error, request_id_of
from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics, method_label, route_label
from pocketrank.cloud.serving.telemetry.tracing import RequestTracer

__all__ = ["ObserveRequests"]


class ObserveRequests:
    """ASGI middleware that observes every request; the answer carries its `X-Request-Id`.

    Plain ASGI, because Starlette's BaseHTTPMiddleware alone costs twice what the rest of a small answer does. `routes` are
    those of `route_label`.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServingMetrics,
        routes: dict[str, str],
        *,
        access_log: AccessLog | None = None,
        tracer: RequestTracer | None = None,
    ) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes
        self._access_log, self._tracer = access_log or AccessLog(), tracer or RequestTracer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Observe one request. The lifespan passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 500
        request = RequestInfo(request_id_of(scope["headers"]))
        before = current_request.set(request)
        route, method = route_label(scope["path"], self._routes), method_label(scope["method"])

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request.id.encode())]
            await send(message)

        try:
            if not self._tracer.enabled:
                await self._app(scope, receive, observed_send)
                return
            with self._tracer.trace_page(scope["headers"], route):
                try:
                    await self._app(scope, receive, observed_send)
                finally:
                    self._tracer.answered(status, request.id)
        except BaseException as error:
            note_error(error)
            raise
        finally:
            seconds = perf_counter() - started
            self._metrics.request(route, method, status, seconds)
            self._access_log(method, route, status, seconds, request.error)
            current_request.reset(before)
