"""Devices that upload feedback to a server that is killed, and ask for pages: some threads with a connection each.

A device sends a batch, alone or with a request for a page, and the same batch again until it is acknowledged. Each batch is of
a user of its own, so that what the server knows of that user is the effect of this batch and nothing else. After a batch that
was sent more than once the device asks for the user's page and keeps the user's vector, by which a second effect is seen.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from threading import Event, Lock, Thread
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from pocketrank.device.codec import from_block, from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError, FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest

__all__ = ["Devices", "DevicesConfig", "Effect"]

_HEADERS = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
_NOW_MS = 1_700_000_000_000
_TIMEOUT_S = 30.0
_RECONNECT_S = 0.01
_JOIN_S = 120.0


@dataclass(frozen=True)
class DevicesConfig:
    """Pace and content of what devices send."""

    connections: int = 4
    """Devices at work at once."""
    events: int = 4
    """Events in a batch."""
    page_share: float = 0.3
    """Share of the batches that are sent with a request for a page."""
    pause_s: float = 5e-3
    """Longest pause between two batches."""
    retry_s: float = 0.1
    """Longest pause before a refused batch is sent again, whatever `Retry-After` says; a fleet would wait."""
    size: int = 5
    """Candidates of a page."""


class Effect(NamedTuple):
    """State at the server of the user of a batch that had been sent more than once."""

    events: tuple[FeedbackEvent, ...]
    vector: NDArray[np.float16]
    """[D]"""


class Devices:
    """Devices that send until `finish`."""

    def __init__(self, port: int, items: NDArray[np.int64], split_version: str, seed: int, config: DevicesConfig) -> None:
        """`items` are the ids of items that the server knows."""
        self.config, self._port, self._items, self._split = config, port, items.tolist(), split_version
        self._users = itertools.count(1 << 40)  # nobody's past is published
        self.acknowledged: list[str] = []
        """Ids of acknowledged events."""
        self.effects: list[Effect] = []
        self.counts: Counter[str] = Counter()
        """`batches` acknowledged, `resent` of them more than once, `broken` connections, answers by `status_N` other than
        200, `without_retry_after`, `malformed`."""
        self._counting, self._stopping = Lock(), Event()
        self._failed: list[BaseException] = []
        self._threads = [
            Thread(target=self._run, args=(random.Random(seed + number),), daemon=True)
            for number in range(1, config.connections + 1)
        ]
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
            _Device(self, self._port, rng).live(self._stopping)
        except BaseException as error:
            self._failed.append(error)

    def count(self, name: str) -> None:
        """Count one more of `name`."""
        with self._counting:
            self.counts[name] += 1

    def batch(self, rng: random.Random) -> tuple[FeedbackEvent, ...]:
        """Return a new user's batch."""
        user = next(self._users)
        watched = rng.sample(self._items, self.config.events)
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
            for i, item in enumerate(watched)
        )

    def page_request(self, user: int, feedback: tuple[FeedbackEvent, ...] = ()) -> PageRequest:
        """Return a request for a page."""
        return PageRequest(
            request_id=str(user),
            user_id=user,
            session_id=str(user),
            now_ms=_NOW_MS + 60_000,
            size=self.config.size,
            split_version=self._split,
            feedback=feedback,
        )


class _Device:
    def __init__(self, devices: Devices, port: int, rng: random.Random) -> None:
        self._all, self._config, self._rng = devices, devices.config, rng
        self._connection, self._pause = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S), Event()

    def live(self, stopping: Event) -> None:
        count = self._all.count
        while not stopping.wait(self._rng.uniform(0, self._config.pause_s)):
            events = self._all.batch(self._rng)
            paged = self._rng.random() < self._config.page_share
            body: msgspec.Struct = self._all.page_request(events[0].user_id, events) if paged else FeedbackBatch(events=events)
            answer, tries = self._until_accepted("/v1/page" if paged else "/v1/feedback", body)
            self._all.acknowledged.extend(event.event_id for event in events)
            count("batches")
            if not self._is_whole(answer, paged):
                count("malformed")
            if tries > 1:
                count("resent")
                self._see_effect(events)
        self._connection.close()

    def _is_whole(self, body: bytes, paged: bool) -> bool:
        try:
            if paged:
                return len(from_msgpack(body, Page).candidates.item_id.data) > 0
            receipt = from_msgpack(body, FeedbackReceipt)
        except ContractError:
            return False
        return receipt.accepted + receipt.duplicates == self._config.events

    def _see_effect(self, events: tuple[FeedbackEvent, ...]) -> None:
        while True:
            answer, _ = self._until_accepted("/v1/page", self._all.page_request(events[0].user_id))
            page = from_msgpack(answer, Page)
            if page.user_vector is not None:  # else the server had no time to compute it
                self._all.effects.append(Effect(events, np.array(from_block(page.user_vector, "user_vector"), np.float16)))
                return

    def _until_accepted(self, path: str, what: msgspec.Struct) -> tuple[bytes, int]:
        """Send until the status is 200; return that answer's body and the number of tries."""
        body, count = to_msgpack(what), self._all.count
        for tries in itertools.count(1):
            try:
                self._connection.request("POST", path, body, _HEADERS)
                response = self._connection.getresponse()
                answer = response.read()
            except (OSError, HTTPException):  # as when the server is killed
                self._connection.close()
                count("broken")
                self._pause.wait(_RECONNECT_S)
                continue
            if response.status == 200:
                return answer, tries
            count(f"status_{response.status}")
            if response.getheader("Retry-After") is None:
                count("without_retry_after")
            self._pause.wait(self._config.retry_s)
        raise AssertionError
