"""The server's ASGI application over the run that is served.

::

    POST /v1/page                  PageRequest -> Page                  scope device
    POST /v1/feedback              FeedbackBatch -> FeedbackReceipt     scope device
    PUT  /v1/items, /v1/users      changes of the catalogue, and DELETE (`routes.catalogue`)  scope publish
    GET  /v1/bundle/...            the bundle (`routes.bundles`)        scope device
    PUT  /v1/bundle...             a new bundle, likewise               scope publish
    POST /v1/bundle/rollback       the bundle before it, likewise       scope admin
    GET  /livez, /readyz           liveness and readiness (`routes.health`)
    GET  /healthz                  what is served, for people
    GET  /metrics                  Prometheus                           scope admin
    GET  /drift                    the inputs of pages                  scope admin
    GET  /docs, /openapi.json      the routes, for people and for tools

A page is made in the event loop (`load.page_queue`). Feedback is written in a thread, which may wait for the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import msgspec
from fastapi import FastAPI
from msgspec.structs import replace
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from pocketrank.cloud.pages.engine import PageEngine
from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.maker import PageMaker
from pocketrank.cloud.pages.own_ids import OwnIds
from pocketrank.cloud.pages.served_page import served_page
from pocketrank.cloud.pages.state_snapshot import StateSnapshot
from pocketrank.cloud.serving.access.access import Access, Caller, check_user
from pocketrank.cloud.serving.access.limits import TooManyError, cost_of_feedback
from pocketrank.cloud.serving.bundles.files import BundleFiles
from pocketrank.cloud.serving.bundles.store import BundleRepository
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.cors import with_cors
from pocketrank.cloud.serving.http.docs import docs_response
from pocketrank.cloud.serving.http.hot import HotRoute, HotRoutes
from pocketrank.cloud.serving.http.openapi import complete, errors, route_labels
from pocketrank.cloud.serving.http.own_ids import WireIds
from pocketrank.cloud.serving.http.received import as_received
from pocketrank.cloud.serving.http.wire import WireError, error_response
from pocketrank.cloud.serving.live_topics import LiveTopics
from pocketrank.cloud.serving.load.feedback_queue import FeedbackQueue
from pocketrank.cloud.serving.load.page_log import PAGE_NOT_KEPT, PageLog
from pocketrank.cloud.serving.load.page_queue import BusyError, PageQueue
from pocketrank.cloud.serving.load.price import ComputePrice
from pocketrank.cloud.serving.routes.bundles import CurrentBundle, bundle_routes, upload_routes
from pocketrank.cloud.serving.routes.catalogue import catalogue_routes
from pocketrank.cloud.serving.routes.health import Health, health_router
from pocketrank.cloud.serving.served_run import CurrentRun, RunFollower, RunRefusedError, ServedRun
from pocketrank.cloud.serving.telemetry.devices import DeviceTelemetry
from pocketrank.cloud.serving.telemetry.features import FeatureDrift
from pocketrank.cloud.serving.telemetry.logs import AccessLog
from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics
from pocketrank.cloud.serving.telemetry.tracing import make_tracer
from pocketrank.cloud.streams.event_log import EventLog
from pocketrank.cloud.streams.feedback_log import FeedbackLog, FeedbackLogError, LogOpenError
from pocketrank.cloud.streams.messages import ServedPage
from pocketrank.cloud.training.registry import RunRegistry
from pocketrank.device.contract import (
    NO_FEEDBACK,
    ContractError,
    FeedbackBatch,
    FeedbackEvent,
    FeedbackReceipt,
    Page,
    PageRequest,
)

__all__ = ["create_app"]

_FLUSH_S = 0.25
"""How often a worker writes its metrics to where another worker, when it is scraped, reads them."""

_logger = logging.getLogger(__name__)


def _check_records(log: FeedbackLog) -> None:
    if log.unreadable:
        raise LogOpenError("the feedback log", "records that can be read", f"{log.unreadable} that are skipped")


def _check_index(name: str, engine: PageEngine) -> None:
    engine.indexes[name].check()


async def _flush_regularly(metrics: ServingMetrics) -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        metrics.flush()


def create_app(
    serves: CurrentRun,
    bundle: Path | None,
    log: FeedbackLog,
    config: ServingConfig,
    *,
    access: Access,
    health: Health,
    events: EventLog | None = None,
    uploads: Path | None = None,
    registry: RunRegistry | None = None,
) -> ASGIApp:
    """Return the application over the run that `serves` holds, the bundle in the folder `bundle` and the feedback in `log`.

    The log is replayed first, from the snapshot of the users' states beside it, after the changes of the catalogue in `events`;
    without them pages are not kept, and the catalogue stays as it was published. `uploads` is the folder of uploaded bundles;
    without it there are no routes for uploads. With a `registry` its active run is followed. The log and the run that is served
    by then may be closed once the application has shut down. Raises `BundleFilesError`, `LogOpenError`.
    """
    limits = config.pipeline.limits

    # What is served.
    store = BundleRepository(uploads, lambda: serves.engine.splits.versions, config.bundles) if uploads else None
    current = CurrentBundle(BundleFiles(bundle, serves.engine.splits.versions) if bundle else None, store)

    # What observes it.
    tracer, access_log = make_tracer(config.tracing), AccessLog(config.logs)
    metrics = ServingMetrics(tracer, FeatureDrift(config.drift))
    metrics.watch_unreadable("removed", lambda: serves.engine.filters.unreadable)
    metrics.watch_unreadable("feedback_log", lambda: log.unreadable)
    telemetry = DeviceTelemetry(metrics.registry, config.telemetry)

    # Pages and feedback, each behind a queue of bounded length.
    price = ComputePrice(config.price)
    topics = None if events is None else LiveTopics(events, serves.run)
    if topics is not None:
        metrics.watch_live(lambda: topics.live)
    page_log = PageLog(events) if events is not None and config.keeps_pages else None
    snapshot = StateSnapshot(log.derived, config.snapshot) if log.derived else None
    intake = FeedbackIntake(log, serves.engine.states, snapshot=snapshot)
    make_page = PageMaker(serves.engine, config.pipeline, observer=metrics, price=price)
    metrics.serves(serves.run.name)
    metrics.features.serve(serves.run.name, serves.engine.profile, serves.engine.record, make_page.columns)
    feedback_queue = FeedbackQueue(intake, config.feedback_waiting)
    own_ids = OwnIds(serves.engine.ids, log.ids, config.log.bytes_max)
    ids = WireIds(own_ids)
    if access.user_keys is not None:
        access.user_keys.accept_texts("user_id" in own_ids.published.kinds)

    def make(request: PageRequest, since: float) -> tuple[Page, ServedPage | None]:
        try:
            intake.follow()
        except FeedbackLogError as error:  # the page lacks the feedback that other workers received in the meantime
            _logger.error("The feedback log cannot be read: %s", error)
        made = make_page.make(request, since)
        metrics.load(made.page.compute_price, len(page_queue))
        if page_log is None:
            return made.page, None
        served, sequence = serves.run, 0 if topics is None else topics.live.sequence
        kept = served_page(made, served.engine.catalogue, run=served.name, sequence=sequence, served_ms=int(1e3 * time()))
        return made.page, kept

    page_queue = PageQueue(make, limits.queue_ms / 1e3, price)

    async def store_feedback(events: Sequence[FeedbackEvent], caller: Caller) -> FeedbackReceipt:
        access.charge(caller, cost_of_feedback(events))
        events = await ids.remembered(events)
        receipt = await feedback_queue(events, ids.speaker(caller))
        metrics.feedback(receipt)
        if acting := [i for i, event in enumerate(events) if event.actions]:
            taken = set(acting).difference(one.index for one in receipt.refused)
            known = serves.engine.record.actions
            metrics.unknown_actions(sum(name not in known for i in taken for name in events[i].actions or ()))
        return receipt

    async def keep_feedback(events: Sequence[FeedbackEvent], caller: Caller) -> bool:
        """Store what came along with a page request. False when it cannot be stored: a page never waits for a full disk."""
        try:
            await store_feedback(events, caller)
        except BusyError as error:
            metrics.shed(error.reason)
        except TooManyError:
            metrics.shed("rate")
        except FeedbackLogError:
            pass  # the check of readiness says why
        else:
            return True
        metrics.degraded(NO_FEEDBACK)
        return False

    async def answer_page(request: Any, since: float, caller: Caller) -> Page:
        if caller.user_id is not None:
            check_user(
                request.user_id, caller._replace(user_id=ids.speaker(caller)), "$.user_id"
            )  # the page holds this user's vector
        make_page.check(request)
        kept = True
        if request.feedback:
            with page_queue.reserve():  # else all requests of a burst enter while their feedback is written
                kept = await keep_feedback(request.feedback, caller)
        page, served = await page_queue(request, since)
        lacks = [] if kept else [NO_FEEDBACK]
        if page_log is not None and served is not None and not await page_log(served):
            metrics.degraded(PAGE_NOT_KEPT)
            lacks.append(PAGE_NOT_KEPT)
        telemetry(request.telemetry)  # last, because a client sends a refused request again as a whole
        return replace(page, degraded=(*page.degraded, *lacks)) if lacks else page

    async def answer_feedback(batch: Any, since: float, caller: Caller) -> FeedbackReceipt:
        receipt = await store_feedback(batch.events, caller)
        telemetry(batch.telemetry)
        return receipt

    def prepare(other: ServedRun, is_wanted: Callable[[], bool]) -> Callable[[], None]:
        """Make another run ready to be served, in a thread; return what makes pages come from it."""
        maker = PageMaker(other.engine, config.pipeline, observer=metrics, price=price)
        if missing := make_page.columns - maker.columns:
            got = f"none of {', '.join(sorted(missing))}"
            raise RunRefusedError(f"Expected the columns of pages that devices are used to, got {got} (restart the server)")
        if other.engine.ids.kinds != own_ids.published.kinds:
            expected, got = (", ".join(sorted(kinds)) or "none" for kinds in (own_ids.published.kinds, other.engine.ids.kinds))
            raise RunRefusedError(f"Expected texts as ids of the kinds {expected}, got {got} (restart the server)")
        # What the first page would have to wait for, and what may go wrong in it.
        trial = PageRequest(request_id="", user_id=0, session_id="", now_ms=round(1e3 * time()), size=1)
        PageMaker(other.engine, config.pipeline)(trial)
        live = None if topics is None else topics.prepare(other)
        intake.prepare(other.engine.states, is_wanted)

        def switch() -> None:
            nonlocal make_page
            if topics is not None and live is not None:
                topics.switch(live)
            intake.switch(other.engine.states)
            own_ids.follow(other.engine.ids)
            make_page = maker
            metrics.serves(other.name)
            metrics.features.serve(other.name, other.engine.profile, other.engine.record, maker.columns)

        return switch

    follower = None if registry is None else RunFollower(registry, config, serves, prepare)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        flushing = asyncio.create_task(_flush_regularly(metrics))
        if follower is not None:
            follower.start()
        if topics is not None:
            topics.start()
        yield
        for each in (follower, topics):
            if each is not None:
                await asyncio.to_thread(each.close)
        flushing.cancel()
        feedback_queue.close()  # after the last answer
        if page_log is not None:
            page_log.close()
        intake.close()
        own_ids.close()
        if tracer is not None:
            tracer.close()

    health.add("feedback_log", log.check, required=True)
    health.add("feedback_records", partial(_check_records, log), required=False)
    if topics is not None:
        health.add("event_log", topics.check, required=False)
    if follower is not None:
        health.add("run", follower.check, required=False)
    if config.pipeline.filters.removed is not None:
        health.add("removed", serves.check(lambda engine: engine.filters.check()), required=False)
    health.add("store", serves.check(lambda engine: engine.splits.check()), required=False)
    health.add("stages", serves.check(lambda engine: engine.pipeline.check()), required=False)
    for name, index in serves.engine.indexes.items():
        if index.remote:
            health.add(f"index_{name}", serves.check(partial(_check_index, name)), required=False)
    if access.tokens is not None:
        health.add("tokens", access.tokens.check_file, required=False)
    if access.user_keys is not None:
        health.add("user_keys", access.user_keys.check_file, required=False)

    # The routes of FastAPI.
    app = FastAPI(
        title="Pocketrank",
        summary="Pages for on-device reranking.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    for kind in (ContractError, WireError, FeedbackLogError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, error_response)
    app.include_router(health_router(health))
    app.include_router(bundle_routes(current, access))
    if events is not None and not access.is_open:
        app.include_router(catalogue_routes(events, lambda: (serves.engine, own_ids, serves.run.run.published), access))
    if store is not None:
        app.include_router(upload_routes(store, current, access, config.upload_stall_s))

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Return what is served."""
        engine = serves.engine
        return {
            "status": "ok",
            "run": serves.run.name,
            "split_version": engine.record.split_version,
            "split_versions": sorted(engine.splits.versions),
            "items": len(engine.catalogue) - 1 - len(engine.catalogue.removed),
            "users": engine.users.count - 1,
            "parameters": 0 if topics is None else topics.live.sequence,
            "own_ids": sorted(engine.ids.kinds),
            "simulated": engine.record.simulated,
            "bundle": await current.maybe() is not None,
            "feedback_replayed": intake.replayed,
            "threads": engine.ranker.threads,
        }

    @app.get("/metrics", response_class=Response, dependencies=[access.requires("admin")], responses=errors(401, 403, 429))
    async def prometheus() -> Response:
        """Return counters and histograms in Prometheus's text format."""
        text, kind = metrics.text()
        return Response(text, media_type=kind)

    @app.get("/drift", response_class=Response, dependencies=[access.requires("admin")], responses=errors(401, 403, 404, 429))
    async def drift() -> Response:
        """Return the inputs of pages beside those of training, in JSON, for `pocketrank data drift`."""
        profiles = metrics.features.profiles()
        if profiles is None:
            raise HTTPException(404, f"Expected a run with a profile of its inputs, got one without - at {serves.run.name}")
        return Response(msgspec.json.encode(profiles), media_type="application/json")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return docs_response(document)

    document = complete(app.openapi(), access.openapi_security("device"))  # FastAPI keeps it and serves it
    labels = route_labels(document)

    # The routes of plain ASGI before them, and what is around all routes.
    hot = {
        "/v1/page": HotRoute(
            as_received(PageRequest, limits), answer_page, page_queue.enter, metrics.stage,
            own=(ids, as_received(PageRequest, limits, own_ids=True)),
        ),
        "/v1/feedback": HotRoute(
            as_received(FeedbackBatch, limits), answer_feedback, own=(ids, as_received(FeedbackBatch, limits, own_ids=True))
        ),
    }  # fmt: skip
    read = BodyReader(limits.body_max, limits.body_s)
    routes = HotRoutes(app, hot, metrics, labels, access=access, read=read, access_log=access_log, tracer=tracer)
    health.loaded()
    return with_cors(routes, config.cors)
