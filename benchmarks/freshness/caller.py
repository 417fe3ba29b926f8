"""Calls of a server of pages, one after the other over one connection."""

from __future__ import annotations

import http.client
from time import time
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from pocketrank.device.codec import from_block, from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackEvent, Page, PageRequest

__all__ = ["Caller"]

_TYPE = "application/msgpack"


class Caller:
    """A device, or an editor, perhaps with a `token`. Raises `BenchmarkError` for an answer that is no success."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = {"Accept": _TYPE} | ({} if token is None else {"Authorization": f"Bearer {token}"})

    def call(self, method: str, path: str, body: bytes, kind: str = _TYPE) -> bytes:
        """Return the body of the answer."""
        self._connection.request(method, path, body, {**self._headers, "Content-Type": kind})
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise BenchmarkError(path, "status 200", f"{answer.status}: {data[:200]!r}")
        return data

    def page(self, user_id: int, size: int, **more: Any) -> Page:
        """Return a page."""
        request = PageRequest(
            request_id=uuid4().hex, user_id=user_id, session_id=more.pop("session_id", uuid4().hex),
            now_ms=int(1000 * time()), size=size, **more,
        )  # fmt: skip
        return from_msgpack(self.call("POST", "/v1/page", to_msgpack(request)), Page)

    def feedback(self, events: tuple[FeedbackEvent, ...]) -> None:
        """Send events."""
        self.call("POST", "/v1/feedback", to_msgpack(FeedbackBatch(events=events)))

    def json(self, method: str, path: str, body: object) -> dict[str, Any]:
        """Send and return JSON."""
        found: dict[str, Any] = msgspec.json.decode(self.call(method, path, msgspec.json.encode(body), "application/json"))
        return found

    @staticmethod
    def items(page: Page) -> NDArray[np.int64]:
        """Return the items of a page."""
        return from_block(page.candidates.item_id)

    @staticmethod
    def scores(page: Page) -> dict[int, NDArray[np.float32]]:
        """Return the pXTRs of a page by item."""
        names = page.candidates.floats.names
        columns = [i for i, name in enumerate(names) if name.startswith("pxtr_")]
        values = from_block(page.candidates.floats.values)[:, columns]
        return dict(zip(Caller.items(page).tolist(), values, strict=True))

    @staticmethod
    def event(page: Page, item: int, user_id: int, position: int, **more: Any) -> FeedbackEvent:
        """Return an event on an item of a page."""
        return FeedbackEvent(
            event_id=uuid4().hex, user_id=user_id, item_id=item, position=position, page_id=page.page_id,
            impression_ms=int(1000 * time()), **more,
        )  # fmt: skip

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
