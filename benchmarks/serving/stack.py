"""The product's HTTP stack over any maker of pages."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp

from pocketrank.cloud.pipeline.config import BudgetConfig
from pocketrank.cloud.serving.access.access import Access
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.hot import HotRoute, HotRoutes
from pocketrank.cloud.serving.http.received import as_received
from pocketrank.cloud.serving.load.page_queue import PageQueue
from pocketrank.cloud.serving.load.price import ComputePrice
from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics
from pocketrank.device.contract import Page, PageRequest

__all__ = ["page_app"]


def page_app(make_page: Callable[[PageRequest], Page]) -> ASGIApp:
    """Return the product's stack over `make_page`: ids, metrics, limits, queue, decoding, encoding. It checks no tokens."""
    metrics, price, budget = ServingMetrics(), ComputePrice(), BudgetConfig()
    queue = PageQueue[PageRequest, Page](lambda asked, since: make_page(asked), budget.queue_ms / 1e3, price)
    route = HotRoute(
        as_received(PageRequest, budget), lambda asked, since, caller: queue(asked, since), queue.enter, metrics.stage
    )
    read = BodyReader(budget.body_max, budget.body_s)
    return HotRoutes(FastAPI(), {"/v1/page": route}, metrics, {"/v1/page": "/v1/page"}, access=Access(), read=read)
