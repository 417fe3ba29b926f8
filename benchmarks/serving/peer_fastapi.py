"""The page behind FastAPI: as its tutorial shows, and as fast as plain FastAPI gets.

`fastapi_plain` is a decorated route with pydantic models in and out, which answers JSON (https://fastapi.tiangolo.com,
"Response Model"). `fastapi_msgpack` reads the raw body, works in the event loop itself, without a pool of threads, and returns
MessagePack in a `Response`.
"""

from __future__ import annotations

from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from benchmarks.serving.by_hand import ByHand
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import PageRequest

__all__ = ["serve_fastapi"]


class PeerRequest(BaseModel):
    """What a page needs of a request; the rest is ignored."""

    request_id: str
    user_id: int
    now_ms: int
    size: int
    exclude: list[int]


class PeerPage(BaseModel):
    """A page as lists."""

    page_id: str
    request_id: str
    created_ms: int
    ttl_ms: int
    item_id: list[int]
    float_names: list[str]
    floats: list[list[float]]
    category_names: list[str]
    categories: list[list[int]]
    vector: list[list[float]]
    compute_price: float
    user_vector: list[float]
    split_version: str


def serve_fastapi(run: Path, port: int, *, msgpack: bool) -> None:
    """Serve pages until SIGTERM, with uvicorn's fastest loop and parser, which it takes by itself."""
    pages, app = ByHand(run / "published"), FastAPI()
    if msgpack:

        @app.post("/page")
        async def page_msgpack(request: Request) -> Response:
            asked = from_msgpack(await request.body(), PageRequest)
            return Response(to_msgpack(pages.page(asked)), media_type="application/msgpack")

    else:

        @app.post("/page")
        def page(asked: PeerRequest) -> PeerPage:
            return PeerPage(**pages.columns(asked.request_id, asked.user_id, asked.exclude, asked.now_ms, asked.size))

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")
