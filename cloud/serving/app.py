"""The HTTP server: pages, feedback, the bundle, health and metrics.

::

    POST /v1/page                  PageRequest -> Page
    POST /v1/feedback              FeedbackBatch -> FeedbackReceipt
    GET  /v1/bundle/manifest.json  the bundle's manifest
    GET  /v1/bundle/manifest.sig   its signatures
    GET  /v1/bundle/release.json   which bundle is current, for whom
    GET  /v1/bundle/files/{path}   a file that the manifest names, or a range of it
    GET  /healthz                  ready, and what is served
    GET  /metrics                  Prometheus

The two hot routes take the raw request: MessagePack or JSON straight to structs of the contract, the work in a pool of
threads, a prebuilt body back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cloud.ranking.published import Published, PublishedRecord
from cloud.ranking.ranker import OnnxRanker, OnnxRankerConfig
from cloud.retrieval.exact import ExactIndex
from cloud.retrieval.retriever import Retriever, RetrieverConfig
from cloud.serving.bundle_files import BundleFile, BundleFiles
from cloud.serving.intake import FeedbackIntake
from cloud.serving.metrics import MeasureRequests, ServingMetrics
from cloud.serving.openapi import ERRORS, add_hot_routes
from cloud.serving.page import PageConfig, PageMaker
from cloud.serving.price import ComputePrice, PriceConfig
from cloud.serving.server import listen, run_server
from cloud.serving.state import StateConfig, UserStates
from cloud.serving.telemetry import DeviceTelemetry, DeviceTelemetryConfig, with_any_telemetry
from cloud.serving.wire import JSON, WireError, decode, encode, error_response, read_body
from cloud.streams.feedback_log import FeedbackLog, FeedbackLogError
from cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from cloud.training.run import Run
from device.contract import ContractError, FeedbackBatch, PageRequest

__all__ = ["ServingConfig", "create_app", "serve"]

_ROUTES = {
    "/v1/page": "/v1/page",
    "/v1/feedback": "/v1/feedback",
    "/v1/bundle/manifest.json": "/v1/bundle/manifest.json",
    "/v1/bundle/manifest.sig": "/v1/bundle/manifest.sig",
    "/v1/bundle/release.json": "/v1/bundle/release.json",
    "/v1/bundle/files/": "/v1/bundle/files",
    "/healthz": "/healthz",
    "/metrics": "/metrics",
}
"""Beginnings of paths and the names that they are counted under."""
_RANGES: dict[int | str, dict[str, Any]] = {
    206: {"description": "The file from the byte on that `Range` asked for."},
    416: {"description": "The file ends before that byte."},
}

_PAGE_REQUEST, _FEEDBACK_BATCH = with_any_telemetry(PageRequest), with_any_telemetry(FeedbackBatch)


@dataclass(frozen=True)
class ServingConfig:
    """A server."""

    page: PageConfig = field(default_factory=PageConfig)
    """What a page is. `serve` takes the task weights of the run where none are given."""
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    """What is ranked."""
    ranker: OnnxRankerConfig = field(default_factory=OnnxRankerConfig)
    """How it is ranked."""
    state: StateConfig = field(default_factory=StateConfig)
    """What is kept of a user."""
    price: PriceConfig = field(default_factory=PriceConfig)
    """What a page costs as load rises."""
    log: SqliteLogConfig = field(default_factory=SqliteLogConfig)
    """How `serve` keeps feedback."""
    telemetry: DeviceTelemetryConfig = field(default_factory=DeviceTelemetryConfig)
    """How much is kept of what devices tell of themselves."""
    workers: int = 2
    """Threads that make pages and take feedback; about one a core. Work in the event loop itself was 5 % faster a page (p10 of
    1,500 alternated requests), but one sync of the disk would then hold up everybody."""
    body_max: int = 1 << 20
    """Longest body of a request in bytes: some 4,000 feedback events."""


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's own text and the hot routes."""
        if not self.openapi_schema:
            self.openapi_schema = add_hot_routes(super().openapi())
        return self.openapi_schema


def create_app(
    published: Published,
    record: PublishedRecord,
    bundle: Path | None,
    log: FeedbackLog,
    *,
    ranker: OnnxRanker,
    config: ServingConfig | None = None,
) -> FastAPI:
    """The application over one published run, the bundle in folder `bundle` and the feedback in `log`.

    Replays the log first. Closes it when the application shuts down. Raises `PublishedError`, `BundleFilesError`,
    `LogOpenError`.
    """
    config = config or ServingConfig()
    files = BundleFiles(bundle, record.split_version) if bundle else None
    metrics, states = ServingMetrics(), UserStates(published, record, config.state)
    telemetry = DeviceTelemetry(config.telemetry)
    metrics.add(telemetry)
    intake, price = FeedbackIntake(log, states), ComputePrice(config.workers, config.price)
    make_page = PageMaker(
        published,
        record,
        ranker=ranker,
        retriever=Retriever(ExactIndex.over(published.item_vector), published.item_popularity, config.retriever),
        states=states,
        intake=intake,
        config=config.page,
        observer=metrics,
        price=price,
    )
    pool = ThreadPoolExecutor(config.workers, thread_name_prefix="pocketrank")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown()  # after the last answer; nothing may still append when the log closes
        log.close()

    app = _App(title="Pocketrank", summary="Pages for on-device reranking.", version="1", lifespan=lifespan)
    for kind in (ContractError, WireError, FeedbackLogError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, error_response)
    app.add_middleware(MeasureRequests, metrics=metrics, routes=_ROUTES)

    def page(request: Request, body: bytes) -> Response:
        started = perf_counter()
        asked = decode(request, body, _PAGE_REQUEST)
        metrics.stage("decode", perf_counter() - started)
        made = make_page(asked)
        telemetry(asked.telemetry)  # last: a refused request is sent again whole
        started = perf_counter()
        response = encode(request, made)
        metrics.stage("encode", perf_counter() - started)
        return response

    def feedback(request: Request, body: bytes) -> Response:
        batch = decode(request, body, _FEEDBACK_BATCH)
        receipt = intake(batch.events)
        telemetry(batch.telemetry)
        metrics.feedback(receipt)
        return encode(request, receipt)

    app.add_route("/v1/page", _hot(page, pool, config.body_max, price.page), methods=["POST"])
    app.add_route("/v1/feedback", _hot(feedback, pool, config.body_max), methods=["POST"])
    not_here: dict[int | str, dict[str, Any]] = {404: {"description": ERRORS[404]}}

    @app.get("/v1/bundle/manifest.json", response_class=Response, responses=not_here)
    async def bundle_manifest(request: Request) -> Response:
        """The manifest of the bundle. 404 when the server has none."""
        return _file(request, _bundle(files).manifest, JSON)

    @app.get("/v1/bundle/manifest.sig", response_class=Response, responses=not_here)
    async def bundle_signatures(request: Request) -> Response:
        """The manifest's signatures. 404 when the bundle is not signed."""
        return _optional(request, _bundle(files).signatures, "a signed bundle")

    @app.get("/v1/bundle/release.json", response_class=Response, responses=not_here)
    async def bundle_release(request: Request) -> Response:
        """The signed release as it is in the bundle's folder now. 404 when there is none."""
        return _optional(request, _bundle(files).release(), "a bundle that was released")

    @app.get("/v1/bundle/files/{path:path}", response_class=Response, responses={**not_here, **_RANGES})
    async def bundle_file(request: Request, path: str) -> Response:
        """A file that the manifest names, with its SHA-256 as ETag; from some byte on when `Range` says so. 404 for every other
        path.
        """
        found = _bundle(files).get(path)
        if found is None:
            raise WireError(404, "url", "a path of the manifest", f"`{path[:200]}`")
        return _file(request, found, "application/octet-stream")

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Answers once the server is ready, with what it serves."""
        return {
            "status": "ok",
            "split_version": record.split_version,
            "items": len(published.item_id) - 1,
            "users": len(published.user_id) - 1,
            "simulated": record.simulated,
            "bundle": files is not None,
            "feedback_replayed": intake.replayed,
        }

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Counters and histograms in Prometheus's text format."""
        text, kind = metrics.text()
        return Response(text, media_type=kind)

    return app


def serve(
    run: Run,
    bundle: Path | None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    feedback_db: Path | None = None,
    config: ServingConfig | None = None,
) -> None:
    """Serve `run` until SIGINT or SIGTERM; answers what is under way before it goes. Prints the URL when ready.

    `port` 0 takes a free one. `feedback_db` is the file of the feedback log, `RUN/feedback.db` by default. Raises
    `PublishedError`, `BundleFilesError`, `LogOpenError`, and `PortError` when the address cannot be had.
    """
    config = config or ServingConfig()
    if config.page.task_weights is None:
        config = replace(config, page=replace(config.page, task_weights=run.spec.task_weights))
    with listen(host, port) as sock, ExitStack() as stack:  # first, so that a port in use is known before anything is loaded
        published, record = Published.open(run.published)
        ranker = OnnxRanker(run.published, published, record, config.ranker)
        log = SqliteFeedbackLog(feedback_db or run.folder / "feedback.db", config.log)
        stack.callback(log.close)
        run_server(create_app(published, record, bundle, log, ranker=ranker, config=config), sock)


def _hot(
    work: Callable[[Request, bytes], Response],
    pool: ThreadPoolExecutor,
    body_max: int,
    under_way: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        body = await read_body(request, body_max)
        with under_way():
            return await asyncio.get_running_loop().run_in_executor(pool, work, request, body)

    return endpoint


def _bundle(files: BundleFiles | None) -> BundleFiles:
    if files is None:
        raise WireError(404, "url", "a server that was started with a bundle", "one without")
    return files


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
