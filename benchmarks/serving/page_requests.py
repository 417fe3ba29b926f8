"""Page requests as devices send them, prebuilt as whole HTTP requests."""

from __future__ import annotations

from uuid import UUID

import numpy as np

from benchmarks.http_connection import http_request
from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.device.codec import to_json, to_msgpack
from pocketrank.device.contract import FeedbackEvent, PageRequest

__all__ = ["EVENTS", "NOW_MS", "SIZE", "PageRequests"]

NOW_MS = 1_750_000_000_000
"""Time of all requests, after the events of the published histories."""
_MSGPACK, _JSON = "application/msgpack", "application/json"
SIZE = 30
"""Candidates asked for."""
EXCLUDE = 10
"""Items that the session has shown."""
EVENTS = 10
"""Feedback events in a request that has any: what was seen since the last page."""


class PageRequests:
    """Requests of users drawn at random, by `seed`, from a published run. All these users have vectors."""

    def __init__(self, published: Published, record: PublishedRecord, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._users, self._items = np.asarray(published.user_id)[1:], np.asarray(published.item_id)[1:]
        self._split = record.split_version

    def requests(self, count: int, *, feedback: bool) -> list[PageRequest]:
        """Return `count` requests, each of a random user in a session of its own. Event ids are as the SDK makes them."""
        rng = self._rng
        users = rng.choice(self._users, count).tolist()
        exclude = rng.choice(self._items, (count, EXCLUDE)).tolist()
        sessions = [_uuid(rng) for _ in range(count)]
        seen = rng.choice(self._items, (count, EVENTS)).tolist() if feedback else [[]] * count
        return [
            PageRequest(
                request_id=_uuid(rng),
                user_id=user,
                session_id=session,
                now_ms=NOW_MS,
                size=SIZE,
                scene=0,
                split_version=self._split,
                exclude=tuple(shown),
                feedback=tuple(
                    FeedbackEvent(
                        event_id=f"{session}/{i}",
                        user_id=user,
                        session_id=session,
                        item_id=item,
                        position=i,
                        impression_ms=NOW_MS - 10_000 * (len(watched) - i),
                        watch_ms=9_000,
                        volume=0.5,
                        muted=False,
                        pauses=0,
                        scroll_speed=1.5,
                    )
                    for i, item in enumerate(watched)
                ),
            )
            for session, user, shown, watched in zip(sessions, users, exclude, seen, strict=True)
        ]

    def msgpack(self, count: int, path: str = "/v1/page", *, feedback: bool = False) -> list[bytes]:
        """Return whole HTTP requests with MessagePack bodies, as a device sends them."""
        return [http_request(path, to_msgpack(request), _MSGPACK) for request in self.requests(count, feedback=feedback)]

    def json(self, count: int, path: str) -> list[bytes]:
        """Return whole HTTP requests with JSON bodies."""
        return [http_request(path, to_json(request), _JSON) for request in self.requests(count, feedback=False)]


def _uuid(rng: np.random.Generator) -> str:
    return str(UUID(bytes=rng.bytes(16)))
