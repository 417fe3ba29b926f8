"""Around every request: its id, its trace, its metrics and its line in the log."""

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
        access: AccessLog | None = None,
        tracer: RequestTracer | None = None,
    ) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes
        self._access, self._tracer = access or AccessLog(), tracer or RequestTracer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 500
        request = RequestInfo(request_id_of(scope["headers"]))
        before = current_request.set(request)
        route = route_label(scope["path"], self._routes)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request.id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            if not self._tracer.enabled:
                await self._app(scope, receive, watched)
                return
            with self._tracer.trace_page(scope["headers"], route):
                try:
                    await self._app(scope, receive, watched)
                finally:
                    self._tracer.answered(status, request.id)
        except BaseException as error:
            note_error(error)
            raise
        finally:
            seconds, method = perf_counter() - started, method_label(scope["method"])
            self._metrics.request(route, method, status, seconds)
            self._access(method, route, status, seconds, request.error)
            current_request.reset(before)
