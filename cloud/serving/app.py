"""The application: what every route does, over one published run.

::

    POST /v1/page                  PageRequest -> Page                  scope device
    POST /v1/feedback              FeedbackBatch -> FeedbackReceipt     scope device
    GET  /v1/bundle/...            the bundle (`bundle_routes`)         scope device
    PUT  /v1/bundle...             a new one (`uploads`)                scope publish
    GET  /livez, /readyz           whether the process answers, whether it should be asked (`health`)
    GET  /healthz                  what is served, for people
    GET  /metrics                  Prometheus                           scope admin

A page is made in the event loop (`line`), feedback is written in a thread, where the disk may be waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from pocketrank.cloud.pages.engine import PageEngine
from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.maker import PageMaker
from pocketrank.cloud.serving.access.access import Access
from pocketrank.cloud.serving.bundles.files import BundleFiles
from pocketrank.cloud.serving.bundles.store import BundleRepository
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.cors import with_cors
from pocketrank.cloud.serving.http.hot import HotRoute, HotRoutes
from pocketrank.cloud.serving.http.observe import ObserveRequests
from pocketrank.cloud.serving.http.openapi import complete, errors
from pocketrank.cloud.serving.http.wire import WireError, error_response
from pocketrank.cloud.serving.load.feedback_queue import FeedbackQueue
from pocketrank.cloud.serving.load.page_queue import BusyError, PageQueue
from pocketrank.cloud.serving.load.price import ComputePrice
from pocketrank.cloud.serving.routes.bundles import CurrentBundle, bundle_routes
from pocketrank.cloud.serving.routes.health import Health, health_router
from pocketrank.cloud.serving.routes.uploads import upload_routes
from pocketrank.cloud.serving.telemetry.devices import DeviceTelemetry, with_any_telemetry
from pocketrank.cloud.serving.telemetry.logs import AccessLog
from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics
from pocketrank.cloud.serving.telemetry.tracing import RequestTracer, make_tracer
from pocketrank.cloud.streams.feedback_log import FeedbackLog, FeedbackLogError
from pocketrank.device.contract import ContractError, FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest

__all__ = ["create_app"]

_ROUTES = {
    "/v1/bundle": "/v1/bundle",
    "/v1/bundle/manifest.json": "/v1/bundle/manifest.json",
    "/v1/bundle/manifest.sig": "/v1/bundle/manifest.sig",
    "/v1/bundle/release.json": "/v1/bundle/release.json",
    "/v1/bundle/files/": "/v1/bundle/files",
    "/v1/bundle/blobs/": "/v1/bundle/blobs",
    "/livez": "/livez",
    "/readyz": "/readyz",
    "/healthz": "/healthz",
    "/metrics": "/metrics",
}
"""Beginnings of paths and the names that they are counted under."""

_PAGE_REQUEST, _FEEDBACK_BATCH = with_any_telemetry(PageRequest), with_any_telemetry(FeedbackBatch)

_FLUSH_S = 0.25
"""How far metrics of one worker may be behind when another one is scraped."""

_logger = logging.getLogger(__name__)


async def _flush_regularly(metrics: ServingMetrics) -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        metrics.flush()


class _App(FastAPI):
    security: list[dict[str, list[str]]] = []  # noqa: RUF012

    def openapi(self) -> dict[str, Any]:
        """FastAPI's own text and what it does not know of."""
        if not self.openapi_schema:
            self.openapi_schema = complete(super().openapi(), self.security)
        return self.openapi_schema


class _TracedMetrics(ServingMetrics):
    """Metrics, and spans of the stages."""

    def __init__(self, tracer: RequestTracer) -> None:
        super().__init__()
        self._tracer = tracer

    def stage(self, name: str, seconds: float, route: str = "/v1/page") -> None:
        super().stage(name, seconds, route)
        now = perf_counter_ns()
        self._tracer.stage(name, now - round(1e9 * seconds), now)


def create_app(
    world: PageEngine,
    bundle: Path | None,
    log: FeedbackLog,
    config: ServingConfig,
    *,
    access: Access,
    health: Health,
    uploads: Path | None = None,
) -> ASGIApp:
    """The application over `world`, the bundle in folder `bundle` and the feedback in `log`; `uploads` keeps uploaded bundles.

    Replays the log first. Closes it, and `world`, when the application shuts down. Raises `BundleFilesError`, `LogOpenError`.
    """
    record, budget = world.record, config.pipeline.limits
    files = BundleFiles(bundle, record.split_version) if bundle else None
    store = BundleRepository(uploads, lambda: world.splits.versions) if uploads else None
    current = CurrentBundle(files, store)
    tracer, access_log = make_tracer(config.tracing), AccessLog(config.logs)
    metrics = _TracedMetrics(tracer) if tracer.enabled else ServingMetrics()
    price = ComputePrice(config.price)
    telemetry = DeviceTelemetry(config.telemetry)
    metrics.add(telemetry)
    intake = FeedbackIntake(log, world.states)
    maker = PageMaker(world, config.pipeline, observer=metrics, price=price)
    keep = FeedbackQueue(intake, config.feedback_waiting)

    def make(request: PageRequest, since: float) -> Page:
        try:
            intake.follow()
        except FeedbackLogError as error:  # what others took is known later
            _logger.error("the log cannot be followed: %s", error)
        made = maker(request, since)
        metrics.load(made.compute_price, len(line))
        return made

    line = PageQueue(make, budget.queue_ms / 1e3, price)

    def enter() -> None:
        try:
            line.enter()
        except BusyError:
            metrics.shed("queue")
            raise

    async def take(events: Sequence[FeedbackEvent], path: str) -> FeedbackReceipt:
        try:
            receipt = await keep(events, path)
        except BusyError:
            metrics.shed("feedback")
            raise
        metrics.feedback(receipt)
        return receipt

    async def page(asked: Any, since: float) -> Page:
        maker.check(asked)
        if asked.feedback:
            with line.reserve():  # or all of a burst enter while their feedback is written
                await take(asked.feedback, "$.feedback")
        answer = await line(asked, since)
        telemetry(asked.telemetry)  # last: a refused request is sent again whole
        return answer

    async def feedback(batch: Any, since: float) -> FeedbackReceipt:
        receipt = await take(batch.events, "$.events")
        telemetry(batch.telemetry)
        return receipt

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        flushing = asyncio.create_task(_flush_regularly(metrics))
        yield
        flushing.cancel()
        keep.close()  # after the last answer; nothing may still append when the log closes
        log.close()
        world.close()
        tracer.close()

    health.add("feedback_log", log.check, required=True)
    health.add("store", world.splits.check, required=False)
    if access.tokens is not None:
        health.add("tokens", access.tokens.check_file, required=False)
    app = _App(
        title="Pocketrank",
        summary="Pages for on-device reranking.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.security = access.openapi_security("device")
    for kind in (ContractError, WireError, FeedbackLogError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, error_response)
    app.add_middleware(ObserveRequests, metrics=metrics, routes=_ROUTES, access=access_log, tracer=tracer)
    app.include_router(health_router(health))
    app.include_router(bundle_routes(current, access))
    if store is not None:
        app.include_router(upload_routes(store, access, config.uploads))

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """What is served."""
        return {
            "status": "ok",
            "split_version": record.split_version,
            "split_versions": sorted(world.splits.versions),
            "items": len(world.published.item_id) - 1,
            "users": len(world.published.user_id) - 1,
            "simulated": record.simulated,
            "bundle": await current.maybe() is not None,
            "feedback_replayed": intake.replayed,
            "threads": world.ranker.threads,
        }

    @app.get("/metrics", response_class=Response, dependencies=[access.requires("admin")], responses=errors(401, 403, 429))
    async def prometheus() -> Response:
        """Counters and histograms in Prometheus's text format."""
        text, kind = metrics.text()
        return Response(text, media_type=kind)

    hot = {
        "/v1/page": HotRoute(_PAGE_REQUEST, page, enter, metrics.stage),
        "/v1/feedback": HotRoute(_FEEDBACK_BATCH, feedback),
    }
    read = BodyReader(budget.body_max, budget.body_s)
    routes = HotRoutes(app, hot, access=access, read=read, metrics=metrics, log=access_log, tracer=tracer)
    health.loaded()
    return with_cors(routes, config.cors)
