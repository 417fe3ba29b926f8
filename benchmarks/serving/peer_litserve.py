"""The page behind LitServe: one API process and one worker, which is its default on one core (https://lightning.ai/docs/litserve).

The request is JSON; the answer is MessagePack in a `Response`, as in its examples that answer images. A dictionary, its other
form, goes through FastAPI's own encoder number by number and took three times as long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-untyped]
import msgspec
from fastapi import Response

from benchmarks.serving.by_hand import ByHand
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import Page, PageRequest

__all__ = ["PageApi", "serve_litserve"]


class PageApi(litserve.LitAPI):  # type: ignore[misc]
    """Makes pages in a process of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def setup(self, device: str) -> None:
        """In the worker."""
        self._pages = ByHand(self._folder)

    # LitServe makes routes from annotations; without them, as in its documentation, it takes any JSON and gives any response.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """A request from its JSON."""
        return msgspec.convert(request, PageRequest)

    def predict(self, asked: PageRequest) -> Page:
        """The page."""
        return self._pages.page(asked)

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        """A page as a body."""
        return Response(to_msgpack(output), media_type="application/msgpack")


def serve_litserve(run: Path, port: int) -> None:
    """Serve pages until SIGTERM."""
    server: Any = litserve.LitServer(PageApi(run / "published"), accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning")
