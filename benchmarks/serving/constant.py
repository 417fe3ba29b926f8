"""What HTTP costs: one page made beforehand, behind the product's own stack and behind the smallest ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.serving.model import Model
from benchmarks.serving.ranked import page_of
from cloud.serving.app import ServingConfig
from cloud.serving.metrics import MeasureRequests, ServingMetrics
from cloud.serving.price import ComputePrice
from cloud.serving.server import listen, run_server
from cloud.serving.telemetry import with_any_telemetry
from cloud.serving.wire import MSGPACK, WireError, decode, encode, error_response, read_body
from cloud.streams.feedback_log import FeedbackLogError
from device.codec import to_msgpack
from device.contract import ContractError, Page, PageRequest

__all__ = ["page_app", "serve_constant"]


def serve_constant(run: Path, port: int, *, ours: bool) -> None:
    """Serve the page of one user to everybody."""
    model = Model(run / "published")
    request = PageRequest(
        request_id="r", user_id=0, session_id="s", now_ms=0, size=30, split_version=model.record.split_version
    )
    page = page_of(model, request)
    app = page_app(lambda _: page) if ours else _Raw(to_msgpack(page))
    with listen("127.0.0.1", port) as sock:
        run_server(app, sock)


def page_app(make_page: Callable[[PageRequest], Page]) -> ASGIApp:
    """The product's stack over any maker of pages: its middleware, pool, limits, decoding and encoding; no tokens to check.

    TO BE WIRED: until the application can be had over any page maker, this repeats what `cloud.serving.app.create_app` puts
    around its own.
    """
    metrics, config = ServingMetrics(), ServingConfig()
    price, pool = ComputePrice(config.workers, config.price), ThreadPoolExecutor(config.workers)
    takes = with_any_telemetry(PageRequest)

    def page(request: Request, body: bytes) -> Response:
        return encode(request, make_page(decode(request, body, takes)))

    async def endpoint(request: Request) -> Response:
        body = await read_body(request, config.body_max)
        with price.page():
            return await asyncio.get_running_loop().run_in_executor(pool, page, request, body)

    app = FastAPI()
    for kind in (ContractError, WireError, FeedbackLogError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, error_response)
    app.add_middleware(MeasureRequests, metrics=metrics, routes={"/v1/page": "/v1/page"})
    app.add_route("/v1/page", endpoint, methods=["POST"])
    return app


class _Raw:
    """Reads a request whole and answers the same bytes to every one."""

    def __init__(self, body: bytes) -> None:
        length = str(len(body)).encode()
        headers = [(b"content-type", MSGPACK.encode()), (b"content-length", length)]
        self._start = {"type": "http.response.start", "status": 200, "headers": headers}
        self._body = {"type": "http.response.body", "body": body}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        await send(self._start)
        await send(self._body)
