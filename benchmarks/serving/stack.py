"""The product's HTTP stack over any maker of pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from cloud.serving.app import ServingConfig
from cloud.serving.metrics import MeasureRequests, ServingMetrics
from cloud.serving.price import ComputePrice
from cloud.serving.telemetry import with_any_telemetry
from cloud.serving.wire import WireError, decode, encode, error_response, read_body
from cloud.streams.feedback_log import FeedbackLogError
from device.contract import ContractError, Page, PageRequest

__all__ = ["page_app"]


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
