"""The product's HTTP stack over any maker of pages."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp

from cloud.pipeline.config import BudgetConfig
from cloud.serving.access import Access
from cloud.serving.body import BodyReader
from cloud.serving.hot import HotRoute, HotRoutes
from cloud.serving.line import PageLine
from cloud.serving.logs import AccessLog
from cloud.serving.metrics import ServingMetrics
from cloud.serving.price import ComputePrice
from cloud.serving.telemetry import with_any_telemetry
from cloud.serving.tracing import Tracer
from device.contract import Page, PageRequest

__all__ = ["page_app"]


def page_app(make_page: Callable[[PageRequest], Page]) -> ASGIApp:
    """The product's stack over any maker of pages: ids, metrics, limits, the line, decoding and encoding; no tokens to
    check."""
    metrics, price, budget = ServingMetrics(), ComputePrice(1), BudgetConfig()
    line = PageLine[PageRequest, Page](lambda asked, since: make_page(asked), budget.queue_ms / 1e3, price)
    route = HotRoute(with_any_telemetry(PageRequest), line.__call__, line.enter, metrics.stage)
    read = BodyReader(budget.body_max, budget.body_s)
    return HotRoutes(
        FastAPI(), {"/v1/page": route}, access=Access(), read=read, metrics=metrics, log=AccessLog(), tracer=Tracer()
    )
