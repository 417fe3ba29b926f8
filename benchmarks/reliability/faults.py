"""Swipes while the cloud fails, with a real session, model, store, uploader and client.

A device has one good page; then the cloud fails, in each of the ways of `benchmarks.reliability.faulty_cloud`, while one
thread swipes, one asks for pages, and one uploads. Half-way the app restarts from its store. At the end the cloud works
again, and all waiting events are sent. A swipe failed if it raised, if it showed nothing or an item that had been shown before,
or if it took as long as a call to the cloud may take.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.latency.timed import milliseconds
from benchmarks.reliability.faulty_cloud import FAULTS, FaultyCloud
from benchmarks.reliability.full_disk import full_disk
from benchmarks.reliability.kills_events import twice
from pocketrank.device.contract import Page, PageRequest
from pocketrank.device.network.client import CloudClient
from pocketrank.device.offline.store import DeviceStore, DeviceStoreConfig
from pocketrank.device.offline.upload import UploadConfig, Uploader
from pocketrank.device.paging import FixedPaging
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.session import FeedSession, RefillConfig, SessionConfig
from tests.device.worlds import make_bundle, make_event, make_page

__all__ = ["SITUATIONS", "FaultConfig", "swipe_through_faults"]

SITUATIONS = ("well", *FAULTS, "full_disk")
"""A cloud that works, each fault of the cloud, and a fault of the device."""


@dataclass(frozen=True)
class FaultConfig:
    """Length of a day in one situation."""

    swipes: int = 300
    """Least number of swipes before and after the app restarts."""
    calls: int = 5
    """Least number of calls to the cloud in each half."""
    dwell_s: float = 2e-3
    """Seconds between two swipes."""
    wait_s: float = 2e-2
    """Seconds between two swipes beyond `swipes`, which are made only until there were enough calls."""
    timeout_s: float = 0.3
    """Timeout of a call. A swipe that takes as long has waited for the network."""
    slow_s: float = 0.45
    """Seconds until a slow cloud answers."""
    items: int = 1000
    """Items of a page: enough that one is always left to show."""
    session: SessionConfig = SessionConfig(shown_max=5000, refill=RefillConfig(backoff_ms=5, backoff_max_ms=50))
    """Retries sooner than in the field, and remembers the whole day, so that a repeat is seen."""
    store: DeviceStoreConfig = DeviceStoreConfig(shown_max=5000)
    """Remembers the whole day too."""
    upload: UploadConfig = UploadConfig(events_max=64, every_s=5e-3, backoff_s=5e-3, backoff_max_s=5e-2)
    """Retries sooner than in the field."""
    evening_s: float = 30.0
    """Seconds in which waiting events must be sent when the cloud works again."""


def swipe_through_faults(work: Path, progress: Callable[[float], None], config: FaultConfig | None = None) -> dict[str, Any]:
    """Return the figures of each situation, and the sum `failed_swipes`. Files are in the folder `work`."""
    config, report = config or FaultConfig(), {}
    ranker = Ranker.open(make_bundle(work / "bundle"))
    for at, situation in enumerate(SITUATIONS):
        report[situation] = _Day(ranker, work / f"{situation}.db", config, situation).figures()
        progress((at + 1) / len(SITUATIONS))
    return {"failed_swipes": sum(day["failed_swipes"] for day in report.values()), "situations": report}


class _Day:
    """One situation: two halves with the fault, then an evening without it."""

    def __init__(self, ranker: Ranker, path: Path, config: FaultConfig, situation: str) -> None:
        self._ranker, self._path, self._config, self._situation = ranker, path, config, situation
        self._items = count()
        self._cloud = FaultyCloud(self._page, config.slow_s)
        self._counts: Counter[str] = Counter()
        self._shown: set[int] = set()
        self._taken: list[str] = []
        self._ns: list[int] = []

    def figures(self) -> dict[str, Any]:
        config, cloud = self._config, self._cloud
        with cloud.serving() as url, CloudClient(url, timeout_s=config.timeout_s) as client:
            for half in ("morning", "afternoon"):
                with self._app(half, client) as (session, _):
                    if half == "morning":
                        session.take(client.page(session.request(config.items)))
                    elif not session.restore():
                        raise BenchmarkError(self._situation, "a page in the store", "none")
                    cloud.calls.clear()
                    cloud.fault = next((fault for fault in FAULTS if fault == self._situation), None)
                    with ExitStack() as stack:
                        if self._situation == "full_disk":
                            stack.enter_context(full_disk())
                        self._swipe(session)
                    self._counts.update({f"cloud_{what}": number for what, number in cloud.calls.items()})
                    cloud.fault = None
            with self._app("evening", client) as (_, store):
                until = time.monotonic() + config.evening_s
                while cloud.events.keys() < set(self._taken) and time.monotonic() < until:
                    time.sleep(config.dwell_s)
                self._counts["damaged"] += store.damaged_files + store.damaged_rows
        return {
            "failed_swipes": sum(self._counts[name] for name in ("raised", "showed_nothing", "shown_twice", "waited")),
            "swipes": len(self._ns),
            **milliseconds(self._ns),
            "max_ms": max(self._ns) / 1e6,
            "events_taken": len(self._taken),
            "events_lost": len(set(self._taken) - cloud.events.keys()),
            "events_twice": twice(cloud.events.values()),
            "counts": dict(sorted(self._counts.items())),
        }

    @contextmanager
    def _app(self, name: str, client: CloudClient) -> Iterator[tuple[FeedSession, DeviceStore]]:
        """Run the app from its start to its end, which leaves the last events to the next start."""
        config, over = self._config, Event()
        with ExitStack() as stack:
            store = stack.enter_context(DeviceStore(self._path, config.store))
            paging = FixedPaging(size=config.items)
            session = FeedSession(self._ranker, user_id=7, session_id=name, paging=paging, store=store, config=config.session)
            uploader = Uploader(store.outbox, client.send_feedback, config.upload)

            def ask() -> None:
                while not over.wait(config.dwell_s):
                    session.refill(client)

            asker = Thread(target=ask)
            if name != "evening":
                asker.start()
                stack.callback(asker.join)
            stack.callback(lambda: uploader.close(config.evening_s))
            stack.callback(over.set)
            uploader.start()
            yield session, store
            self._counts["pages_taken"] += session.counters.pages
            self._counts["pages_missing"] += session.counters.pages_missing
            self._counts["uploads_failed"] += uploader.counters.failed
            self._counts["events_resent"] += uploader.counters.duplicates
            self._counts["writes_failed"] += store.writes_failed

    def _swipe(self, session: FeedSession) -> None:
        """Swipe until enough calls reached the cloud as it is."""
        config, end = self._config, time.monotonic() + self._config.evening_s
        for at in count():
            if at >= config.swipes and (self._cloud.calls.total() >= config.calls or time.monotonic() > end):
                return
            start = time.perf_counter_ns()
            try:
                item = session.next()
                if item is None:
                    self._counts["showed_nothing"] += 1
                else:
                    more = {
                        "session_id": session.session_id,
                        "event_id": f"{session.session_id}/{at}",
                        "page_id": session.page_id,
                    }
                    event = make_event(item, at, **more)
                    if session.feedback(event):
                        self._taken.append(event.event_id)
            except Exception:  # any error is a failed swipe
                self._counts["raised"] += 1
                item = None
            spent = time.perf_counter_ns() - start
            self._ns.append(spent)
            self._counts["waited"] += spent > config.timeout_s * 1e9
            self._counts["shown_twice"] += item in self._shown
            if item is not None:
                self._shown.add(item)
            time.sleep(config.dwell_s if at < config.swipes else config.wait_s)

    def _page(self, request: PageRequest) -> Page:
        items = [next(self._items) for _ in range(request.size)]
        return make_page(items, request_id=request.request_id, page_id=request.request_id)
