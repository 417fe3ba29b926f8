"""A session with what an app gives it: a client, a store, a tier, a watchdog, strategies, telemetry, a trace."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank import __version__
from pocketrank.device.codec import from_msgpack, to_block
from pocketrank.device.contract import Columns, FeedbackBatch, Page
from pocketrank.device.model.search import GREEDY
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import ClientError
from pocketrank.device.offline.store import DeviceStore
from pocketrank.device.paging import PageDecision, Paging, PagingState
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.ranking.tiers import Tier
from pocketrank.device.ranking.watchdog import WatchdogConfig
from pocketrank.device.reports.telemetry import TelemetryConfig
from pocketrank.device.reports.trace import Tracer, read_trace
from pocketrank.device.runtimes import Runtime
from pocketrank.device.session import FeedSession, SessionConfig
from pocketrank.device.session.counters import telemetry_names
from pocketrank.device.strategies import AdSlots, Arranger, KeepBuffered, MinGap, Pin
from tests.device.network.test_client import Cloud, serving
from tests.device.worlds import SPEC, SPLIT, Clock, make_event, make_page

REPORTING = SessionConfig(telemetry=TelemetryConfig())


class Recorder(Cloud):
    """A cloud that keeps what it received."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[tuple[str, bytes]] = []

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.bodies.append((path, body))
        return super().handle(path, body)


def session(ranker: Ranker | None, clock: Clock | None = None, **keys: Any) -> FeedSession:
    return FeedSession(ranker, user_id=7, session_id="s", clock=clock or Clock(), **keys)


def swipe(feed: FeedSession, **changes: Any) -> int | None:
    item = feed.next()
    if item is not None:
        feed.feedback(make_event(item, feed.position - 1, **changes))
    return item


# ---------------------------------------------------------------------------------------------------------------- store


def test_a_session_goes_on_after_a_restart_without_network(ranker: Ranker, tmp_path: Path) -> None:
    page = make_page(list(range(8)))
    with DeviceStore(tmp_path / "device.db") as store, session(ranker, store=store) as feed:
        assert not feed.restore()
        feed.take(page)
        shown = [swipe(feed) for _ in range(3)]
    with DeviceStore(tmp_path / "device.db") as store, session(ranker, store=store) as feed:
        assert feed.restore()
        left = feed.remaining.tolist()
        assert sorted([*left, *shown]) == list(range(8))
        request = feed.request(5)
        assert [event.item_id for event in request.feedback] == shown
        assert set(request.exclude) == set(shown)
        assert not feed.feedback(make_event(shown[0] or 0))  # known from before
        assert not feed.take(make_page([item for item in shown if item is not None], 1))


def test_a_stale_page_is_not_restored(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "device.db") as store:
        session(None, store=store).take(make_page([1, 2]))
        assert not session(None, Clock(Clock().ms + 600_000), store=store).restore()
        assert session(None, store=store).restore()


class NeverAsks(Paging):
    """A policy that never asks, and keeps the states it was asked about."""

    def __init__(self) -> None:
        self.states: list[PagingState] = []

    def __call__(self, state: PagingState) -> PageDecision:
        self.states.append(state)
        return PageDecision(False, 0, "continue")


def test_a_restored_page_keeps_its_age(tmp_path: Path) -> None:
    clock, paging = Clock(), NeverAsks()
    with DeviceStore(tmp_path / "device.db") as store:
        session(None, clock, store=store).take(make_page([1, 2]))
    clock.ms += 20_000
    with DeviceStore(tmp_path / "device.db") as store, session(None, clock, store=store, paging=paging) as feed:
        assert feed.restore()
        feed.wants_page()
    assert paging.states[0].age_ms == 20_000


# ------------------------------------------------------------------------------------------------------------- requests


def test_requests_and_feedback_name_the_experiment() -> None:
    feed = session(None, config=SessionConfig(experiment="b"))
    feed.take(make_page([1, 2], split=None))
    swipe(feed)
    request = feed.request(1)
    assert (request.experiment, [event.experiment for event in request.feedback]) == ("b", ["b"])


# ------------------------------------------------------------------------------------------------------------- watchdog


class Stuck(Runtime):
    """Another runtime that does not answer while `free` is not set."""

    def __init__(self, inner: Runtime) -> None:
        self.inner, self.input_names = inner, inner.input_names
        self.list_sizes, self.events = inner.list_sizes, inner.events
        self.free = threading.Event()
        self.free.set()
        self.ended = threading.Event()

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        before = {name: array.copy() for name, array in inputs.items()}
        self.free.wait()
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)  # nobody wrote into what a late run reads
        answer = self.inner.run_all(inputs)
        self.ended.set()
        return answer


def test_a_model_that_hangs_leaves_cloud_order_and_may_end_later(ranker: Ranker) -> None:
    stuck = Stuck(ranker.runtimes["split"]["whole"])
    own = Ranker(SPEC, SPLIT, {"split": {"whole": stuck}})
    feed = session(own, config=SessionConfig(watchdog=WatchdogConfig(budget_ms=50, trust_after=None, overruns_max=9)))
    plain = session(ranker)
    for each in (feed, plain):
        each.take(make_page(list(range(8))))
    stuck.free.clear()
    stuck.ended.clear()
    assert swipe(feed) == 0
    assert swipe(feed) == 1  # no second run beside the late one
    stuck.free.set()
    assert stuck.ended.wait(60)
    for item in (0, 1):
        plain.feedback(make_event(item, item))
    while feed.counters.reranks == 0:  # the late run may be ending; an order is made once after each change
        again = make_event(0, feed.counters.events, event_id=f"again{feed.counters.events}")
        for each in (feed, plain):
            each.feedback(again)
        order = feed.remaining.tolist()
    assert order == plain.remaining.tolist()


# ---------------------------------------------------------------------------------------------------------------- tiers


def test_battery_saver_orders_at_every_second_swipe(ranker: Ranker) -> None:
    feed, plain = session(ranker, config=SessionConfig(tier=Tier(name="greedy", search=GREEDY))), session(ranker)
    for each in (feed, plain):
        each.take(make_page(list(range(8))))
    for _ in range(2):
        assert swipe(feed, battery_saver=False) == swipe(plain)
    assert feed.counters.reranks == 2
    for _ in range(2):
        swipe(feed, battery_saver=True)
    before = feed.counters.reranks
    shown = [swipe(feed, battery_saver=True) for _ in range(3)]
    assert feed.counters.reranks == before + 2  # at positions 4 and 6, not at 5
    assert len(set(shown)) == 3
    assert feed.feedback(make_event(99, battery_saver=False))
    before = feed.counters.reranks
    assert len(feed.remaining) == 1
    feed.take(make_page(list(range(10, 18)), 1))
    for _ in range(3):
        swipe(feed, battery_saver=False)
    assert feed.counters.reranks == before + 3


# ----------------------------------------------------------------------------------------------------------- strategies


def _authored(items: list[int], authors: list[int], seed: int = 0, ads: list[int] | None = None) -> Page:
    page = make_page(items, seed)
    codes = np.stack([np.ones(len(items), int), authors, ads or [0] * len(items)], 1)
    columns = Columns(names=("category", "author", "ad"), values=to_block(codes, "i4"))
    return replace(page, candidates=replace(page.candidates, categories=columns))


def test_strategies_hold_and_next_shows_the_first_of_remaining(ranker: Ranker) -> None:
    arranger = Arranger([Pin(6, position=1), AdSlots(2, 3, every=4), MinGap("author", 2)])
    feed = session(ranker, strategies=arranger)
    authors, ads = [1, 1, 2, 2, 3, 3, 4, 9, 9], [0, 0, 0, 0, 0, 0, 0, 1, 1]
    feed.take(_authored(list(range(9)), authors, ads=ads))
    shown = []
    while len(remaining := feed.remaining):
        item = swipe(feed)
        assert item == remaining[0]
        shown.append(item)
    assert sorted(shown) == list(range(9))
    assert shown[1] == 6
    assert {7, 8} & set(shown[2:4])
    assert not {7, 8} & set(shown[:2])


def test_buffered_items_come_first_and_discarded_ones_are_counted(ranker: Ranker) -> None:
    feed = session(ranker, strategies=Arranger([KeepBuffered()]), config=REPORTING)
    feed.take(make_page(list(range(8))))
    last = feed.remaining.tolist()[-2:]
    feed.buffered({last[0]: 1000, last[1]: 500})
    assert feed.remaining.tolist()[:2] == last
    assert swipe(feed) == last[0]
    feed.take(make_page(list(range(20, 28)), 1))
    report = feed.request(5).telemetry
    assert report is not None
    assert report.counters["discarded_buffer_items"] == 1
    assert report.counters["discarded_buffer_bytes"] == 500


# ------------------------------------------------------------------------------------------------------------ telemetry


def test_telemetry_is_sent_with_requests_and_batches_and_counted_once(ranker: Ranker) -> None:
    feed, cloud = session(ranker, config=REPORTING), Recorder()
    with serving(cloud) as url, CloudClient(url) as client:
        feed.take(make_page(list(range(8)), split="other"))
        for _ in range(3):
            swipe(feed)
        cloud.answers = {"/v1/feedback": (500, b"no")}
        with pytest.raises(ClientError):
            feed.flush(client)
        cloud.answers = {}
        assert feed.flush(client) == 3
    first, second = (from_msgpack(body, FeedbackBatch) for path, body in cloud.bodies if path == "/v1/feedback")
    assert first == second
    assert first.telemetry is not None
    assert first.telemetry.counters["reranks"] == first.telemetry.timings["rerank"].count == 3
    assert first.telemetry.counters["split_mismatch"] == 1
    assert feed.request(1).telemetry is None  # nothing since


def test_a_report_names_its_sdk_bundle_and_tier(ranker: Ranker, tmp_path: Path) -> None:
    feed = session(None, config=SessionConfig(telemetry=TelemetryConfig(), tier=Tier(name="greedy")))
    feed.take(make_page([1, 2, 3], split=None))
    swipe(feed)
    feed.use(ranker)
    feed.take(make_page([4, 5, 6], 1))
    swipe(feed)
    first, second = feed.request(1).telemetry, feed.request(1).telemetry
    assert first is not None
    assert second is not None
    assert [(r.sdk, r.bundle, r.tier) for r in (first, second)] == [
        (__version__, None, "greedy"), (__version__, "tiny/1", "greedy"),
    ]  # fmt: skip
    assert (first.counters.get("reranks"), second.counters.get("reranks")) == (None, 1)
    assert (first.counters["events"], second.counters["events"]) == (1, 1)


def test_telemetry_names_has_every_name_that_a_session_reports(ranker: Ranker) -> None:
    config = SessionConfig(telemetry=TelemetryConfig(), watchdog=WatchdogConfig())
    feed = session(ranker, config=config, strategies=Arranger([Pin(2, 0), MinGap("no such", 2)]))
    feed.take(make_page([1, 2, 3]))
    swipe(feed)
    report = feed.request(1).telemetry
    assert report is not None
    assert {"strategies_fired", "strategies_column_missing"} < report.counters.keys()
    assert report.counters.keys() | report.timings.keys() <= telemetry_names()


def test_what_may_leave_follows_the_models_in_use(ranker: Ranker) -> None:
    wanted = next(f.name for f in ranker.spec.feedback_floats if f.name in ("volume", "scroll_speed"))
    feed = session(None)
    feed.take(make_page([1, 2, 3, 4], split=None))
    swipe(feed, **{wanted: 0.25})
    feed.use(ranker)
    feed.take(make_page([5, 6, 7], 1))
    swipe(feed, **{wanted: 0.25})
    assert [getattr(event, wanted) for event in feed.drain_feedback()] == [None, 0.25]


def test_a_session_outside_of_the_sample_reports_nothing(ranker: Ranker) -> None:
    for config in (SessionConfig(), SessionConfig(telemetry=TelemetryConfig(rate=0))):
        feed = session(ranker, config=config)
        feed.take(make_page([1, 2, 3]))
        swipe(feed)
        assert feed.request(1).telemetry is None


# ---------------------------------------------------------------------------------------------------------------- trace


def test_a_trace_has_each_choice(ranker: Ranker, tmp_path: Path) -> None:
    with Tracer(tmp_path / "session.trace") as tracer:
        feed = session(ranker, tracer=tracer, strategies=Arranger([Pin(5, position=1)]))
        feed.take(make_page(list(range(8))))
        feed.wants_page()
        shown = [swipe(feed) for _ in range(3)]
    told = list(read_trace(tmp_path / "session.trace"))
    assert [decision.shown for decision in told] == shown
    assert [decision.position for decision in told] == [0, 1, 2]
    assert {decision.bundle for decision in told} == {"tiny/1"}
    assert {decision.form for decision in told} == {"split"}
    assert told[1].strategies
    assert told[2].event_items.tolist() == shown[:2]
    assert told[0].paging is not None
    assert told[0].paging.reason == "continue"
