"""Devices that upload feedback to a server that is killed, and ask for pages: some threads with a connection each.

A device sends a batch, alone or with a request for a page, and the same batch again until it is acknowledged. Each batch is of
a user of its own, so that what the server knows of that user is the effect of this batch and nothing else. After a batch that
was sent more than once the device asks for the user's page and keeps the user's vector, by which a second effect is seen.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from http.client import HTTPConnection, HTTPException
from threading import Event, Lock, Thread
from time import sleep
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from pocketrank.device.codec import from_block, from_msgpack, to_msgpack
from pocketrank.device.contract import (
    NO_FEEDBACK,
    ContractError,
    FeedbackBatch,
    FeedbackEvent,
    FeedbackReceipt,
    Page,
    PageRequest,
)

__all__ = ["Devices", "Effect"]

CONNECTIONS = 4
"""Devices at work at once."""
EVENTS = 4
"""Events in a batch."""
PAGE_SHARE = 0.3
"""Share of the batches that are sent with a request for a page."""
PAUSE_S = 5e-3
"""Longest pause between two batches."""
RETRY_S = 0.1
"""Longest pause before a refused batch is sent again, whatever `Retry-After` says; a fleet would wait."""
SIZE = 5
"""Candidates of a page."""
_HEADERS = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
_NOW_MS = 1_700_000_000_000
_TIMEOUT_S = 30.0
_RECONNECT_S = 0.01
_JOIN_S = 120.0


class Effect(NamedTuple):
    """State at the server of the user of a batch that had been sent more than once."""

    events: tuple[FeedbackEvent, ...]
    vector: NDArray[np.float16]
    """[D]"""


class Devices:
    """Devices that send until `finish`."""

    def __init__(self, port: int, items: NDArray[np.int64], split_version: str, seed: int) -> None:
        """`items` are the ids of items that the server knows."""
        self._port, self._items, self._split = port, items.tolist(), split_version
        self._users = itertools.count(1 << 40)  # nobody's past is published
        self.acknowledged: list[str] = []
        """Ids of acknowledged events."""
        self.effects: list[Effect] = []
        self.counts: Counter[str] = Counter()
        """`batches` acknowledged, `resent` of them more than once, `broken` connections, answers by `status_N` other than
        200, `without_retry_after`, pages `without_feedback`, `malformed`."""
        self._counting, self._stopping = Lock(), Event()
        self._failed: list[BaseException] = []
        seeds = range(seed + 1, seed + 1 + CONNECTIONS)
        self._threads = [Thread(target=self._run, args=(random.Random(own),), daemon=True) for own in seeds]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Begin no more batches, and wait until all are acknowledged. Raises `BenchmarkError` when that takes too long."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
        if self._failed:
            raise self._failed[0]
        if alive := sum(thread.is_alive() for thread in self._threads):
            raise BenchmarkError("devices", f"all feedback acknowledged within {_JOIN_S:g} s", f"{alive} with some left")

    def _run(self, rng: random.Random) -> None:
        try:
            self._live(HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S), rng)
        except BaseException as error:
            self._failed.append(error)

    def _count(self, name: str) -> None:
        with self._counting:
            self.counts[name] += 1

    def _live(self, connection: HTTPConnection, rng: random.Random) -> None:
        """Send batch after batch, until there are to be no more."""
        while not self._stopping.wait(rng.uniform(0, PAUSE_S)):
            user = next(self._users)
            events = self._batch(user, rng)
            paged = rng.random() < PAGE_SHARE
            body: msgspec.Struct = self._page_request(user, events) if paged else FeedbackBatch(events=events)
            answer, tries = self._until_accepted(connection, "/v1/page" if paged else "/v1/feedback", body)
            self.acknowledged.extend(event.event_id for event in events)
            self._count("batches")
            if not _is_whole(answer, paged):
                self._count("malformed")
            if tries > 1:
                self._count("resent")
                self._see_effect(connection, user, events)
        connection.close()

    def _batch(self, user: int, rng: random.Random) -> tuple[FeedbackEvent, ...]:
        return tuple(
            FeedbackEvent(
                event_id=f"{user}/{i}",
                user_id=user,
                session_id=str(user),
                item_id=item,
                position=i,
                impression_ms=_NOW_MS + 1000 * i,
                watch_ms=rng.randrange(30_000),
                like=rng.random() < 0.3,
            )
            for i, item in enumerate(rng.sample(self._items, EVENTS))
        )

    def _page_request(self, user: int, feedback: tuple[FeedbackEvent, ...] = ()) -> PageRequest:
        return PageRequest(
            request_id=str(user),
            user_id=user,
            session_id=str(user),
            now_ms=_NOW_MS + 60_000,
            size=SIZE,
            split_version=self._split,
            feedback=feedback,
        )

    def _see_effect(self, connection: HTTPConnection, user: int, events: tuple[FeedbackEvent, ...]) -> None:
        while True:
            answer, _ = self._until_accepted(connection, "/v1/page", self._page_request(user))
            page = from_msgpack(answer, Page)
            if page.user_vector is not None:  # else the server had no time to compute it
                self.effects.append(Effect(events, np.array(from_block(page.user_vector, "user_vector"), np.float16)))
                return

    def _until_accepted(self, connection: HTTPConnection, path: str, what: msgspec.Struct) -> tuple[bytes, int]:
        """Send until the status is 200; return that answer's body and the number of tries."""
        body = to_msgpack(what)
        for tries in itertools.count(1):
            try:
                connection.request("POST", path, body, _HEADERS)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, HTTPException):  # as when the server is killed
                connection.close()
                self._count("broken")
                sleep(_RECONNECT_S)
                continue
            if response.status == 200:
                if not _lacks_feedback(answer, what):
                    return answer, tries
                self._count("without_feedback")
                sleep(RETRY_S)
                continue
            self._count(f"status_{response.status}")
            if response.getheader("Retry-After") is None:
                self._count("without_retry_after")
            sleep(RETRY_S)
        raise AssertionError


def _lacks_feedback(body: bytes, asked: msgspec.Struct) -> bool:
    """Return whether a page came without the feedback of its request, which the device then sends again."""
    try:
        return isinstance(asked, PageRequest) and NO_FEEDBACK in from_msgpack(body, Page).degraded
    except ContractError:
        return False


def _is_whole(body: bytes, paged: bool) -> bool:
    try:
        if paged:
            return len(from_msgpack(body, Page).candidates.item_id.data) > 0
        receipt = from_msgpack(body, FeedbackReceipt)
    except ContractError:
        return False
    return receipt.accepted + receipt.duplicates == EVENTS
