"""What Prometheus reads of a serving process. One registry a server, so that two in a process do not mix."""

from __future__ import annotations

from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud.serving.page import PageObserver
from cloud.serving.telemetry import DeviceTelemetry
from device.contract import FeedbackReceipt

__all__ = ["MeasureRequests", "ServingMetrics"]

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_CANDIDATES = (0, 1, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
_PAGE = "/v1/page"


class ServingMetrics(PageObserver):
    """The counters and histograms, and their text form."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pocketrank_requests", "Answered requests.", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "pocketrank_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "pocketrank_stage_seconds", "One stage of a request.", ["route", "stage"], buckets=_SECONDS, registry=self._registry
        )
        self._candidates = Histogram(
            "pocketrank_candidates", "Candidates of a page.", ["stage"], buckets=_CANDIDATES, registry=self._registry
        )
        self._events = Counter("pocketrank_feedback_events", "Feedback events.", ["result"], registry=self._registry)
        self._without = Counter(
            "pocketrank_pages_without_vectors", "Pages without vectors, by reason.", ["reason"], registry=self._registry
        )
        for result in ("accepted", "duplicate"):
            self._events.labels(result)
        for reason in ("unknown", "not_asked"):
            self._without.labels(reason)
        self._of_stage = {
            name: self._stages.labels(_PAGE, name)
            for name in ("decode", "feedback", "tower", "retrieve", "rank", "assemble", "encode")
        }
        self._retrieved, self._returned = self._candidates.labels("retrieved"), self._candidates.labels("returned")

    def add(self, devices: DeviceTelemetry) -> None:
        """Expose what devices tell of themselves, too."""
        self._registry.register(devices)

    def stage(self, name: str, seconds: float) -> None:
        """A stage of a page took so long."""
        if name not in self._of_stage:
            self._of_stage[name] = self._stages.labels(_PAGE, name)
        self._of_stage[name].observe(seconds)

    def feedback(self, receipt: FeedbackReceipt) -> None:
        """Events were taken in."""
        self._events.labels("accepted").inc(receipt.accepted)
        self._events.labels("duplicate").inc(receipt.duplicates)

    def page(self, retrieved: int, returned: int, without_vectors: str | None) -> None:
        """A page is made."""
        self._retrieved.observe(retrieved)
        self._returned.observe(returned)
        if without_vectors is not None:
            self._without.labels(without_vectors).inc()

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request is answered."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class MeasureRequests:
    """ASGI middleware that counts and times every request.

    Plain ASGI, because Starlette's BaseHTTPMiddleware alone costs twice what the rest of a small answer does. `routes` maps
    the beginning of a path to the name it is counted under; any other path is `other`, so that a scanner makes no labels.
    """

    def __init__(self, app: ASGIApp, metrics: ServingMetrics, routes: dict[str, str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self._metrics.request(self._route(scope["path"]), method, status, perf_counter() - started)

    def _route(self, path: str) -> str:
        if name := self._routes.get(path):
            return name
        return next((name for start, name in self._routes.items() if start.endswith("/") and path.startswith(start)), "other")
