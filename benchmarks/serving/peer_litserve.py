"""The page behind LitServe: one API process and one worker, JSON both ways, as its documentation shows (https://lightning.ai)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litserve

from benchmarks.serving.model import Model
from benchmarks.serving.ranked import columns_of

__all__ = ["PageApi", "serve_litserve"]


class PageApi(litserve.LitAPI):
    """Ranks in a process of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def setup(self, device: str) -> None:
        """In the worker."""
        self._model = Model(self._folder)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a page needs of a request."""
        return request

    def predict(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The page."""
        return columns_of(self._model, asked["request_id"], asked["user_id"], asked["now_ms"], asked["size"])

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


def serve_litserve(run: Path, port: int) -> None:
    """Serve pages until SIGTERM."""
    server = litserve.LitServer(PageApi(run / "published"), accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning")
