"""What HTTP costs: one page made beforehand, behind the product's own stack and behind the smallest ASGI application."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.serving.model import Model
from benchmarks.serving.ranked import page_of
from cloud.pipeline.config import BudgetConfig
from cloud.serving.access import Access
from cloud.serving.body import BodyReader
from cloud.serving.hot import HotRoute, HotRoutes
from cloud.serving.line import PageLine
from cloud.serving.logs import AccessLog
from cloud.serving.metrics import ServingMetrics
from cloud.serving.price import ComputePrice
from cloud.serving.server import listen, run_server
from cloud.serving.telemetry import with_any_telemetry
from cloud.serving.tracing import Tracer
from cloud.serving.wire import MSGPACK
from device.codec import to_msgpack
from device.contract import Page, PageRequest

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
    """The product's stack over any maker of pages: ids, metrics, limits, the line, decoding and encoding; no tokens to check."""
    metrics, price, budget = ServingMetrics(), ComputePrice(1), BudgetConfig()
    line = PageLine[PageRequest, Page](lambda asked, since: make_page(asked), budget.queue_ms / 1e3, price)
    route = HotRoute(with_any_telemetry(PageRequest), line.__call__, line.enter, metrics.stage)
    read = BodyReader(budget.body_max, budget.body_s)
    return HotRoutes(
        FastAPI(), {"/v1/page": route}, access=Access(), read=read, metrics=metrics, log=AccessLog(), tracer=Tracer()
    )


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
