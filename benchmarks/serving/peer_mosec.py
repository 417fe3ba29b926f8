"""The page behind mosec: one worker, as one core has room for, with MessagePack both ways (https://mosecorg.github.io/mosec).

`deserialize` and `serialize` are where mosec wants another form than JSON. They take msgspec here, the product's own and the
faster one, rather than mosec's `MsgpackMixin`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mosec import Server, Worker

from benchmarks.serving.by_hand import ByHand
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import Page, PageRequest

__all__ = ["PageWorker", "serve_mosec"]

_RUN = "POCKETRANK_BENCHMARK_RUN"


class PageWorker(Worker):
    """Makes pages in a process of its own."""

    resp_mime_type = "application/msgpack"

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pages = ByHand(Path(os.environ[_RUN]) / "published")

    def deserialize(self, data: bytes) -> PageRequest:
        """A request from its body."""
        return from_msgpack(data, PageRequest)

    def forward(self, data: PageRequest) -> Page:
        """The page."""
        return self._pages.page(data)

    def serialize(self, data: Any) -> bytes:
        """A page as a body."""
        return to_msgpack(data)


def serve_mosec(run: Path, port: int) -> None:
    """Serve pages until SIGTERM."""
    os.environ |= {_RUN: str(run), "MOSEC_PORT": str(port), "MOSEC_ADDRESS": "127.0.0.1", "MOSEC_LOG_LEVEL": "warning"}
    server = Server()  # type: ignore[no-untyped-call]
    server.append_worker(PageWorker, num=1)
    server.run()  # type: ignore[no-untyped-call]
