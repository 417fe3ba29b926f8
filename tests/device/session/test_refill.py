import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackBatch, Page, PageRequest
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import BadStatusError, ClientError, UnreachableError
from pocketrank.device.paging import FixedPaging
from pocketrank.device.reports.telemetry import TelemetryConfig
from pocketrank.device.session import FeedSession, RefillConfig, SessionConfig
from tests.device.network.test_client import Cloud, serving
from tests.device.worlds import T0, Clock, make_event, make_page

FAILING = {"/v1/page": (500, b"no")}


class Draws(random.Random):
    """A generator that draws the same number each time; 1 too, so that a wait can be the whole span."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def random(self) -> float:
        """Return the number."""
        return self.share


class Recorder(Cloud):
    """A cloud that keeps the page requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[PageRequest] = []

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/v1/page":
            self.requests.append(from_msgpack(body, PageRequest))
        return super().handle(path, body)


@pytest.fixture
def cloud() -> Recorder:
    return Recorder()


@pytest.fixture
def client(cloud: Recorder) -> Iterator[CloudClient]:
    with serving(cloud) as url, CloudClient(url) as client:
        yield client


def session(clock: Clock, share: float, config: RefillConfig | None = None, **keys: Any) -> FeedSession:
    options = SessionConfig(refill=config or RefillConfig(), expects_model=False)
    return FeedSession(None, user_id=7, session_id="s", clock=clock, config=options, rng=Draws(share), **keys)


def waited(feed: FeedSession, client: CloudClient, cloud: Recorder, clock: Clock) -> int:
    """Move the clock on until the cloud is asked again, and return the ms until then."""
    asked, begin = len(cloud.requests), clock.ms
    while len(cloud.requests) == asked:
        clock.ms += 5
        feed.refill(client)
    return clock.ms - begin


def test_the_backoff_doubles_up_to_its_maximum(cloud: Recorder, client: CloudClient) -> None:
    clock = Clock()
    feed = session(clock, 0.5, RefillConfig(backoff_ms=20, backoff_max_ms=100))
    cloud.answers = FAILING
    feed.refill(client)
    assert [waited(feed, client, cloud, clock) for _ in range(5)] == [10, 20, 40, 50, 50]
    assert feed.counters.pages_missing == len(cloud.requests) == 6


def test_the_default_backoff_is_a_second_at_first_and_a_minute_at_most(cloud: Recorder, client: CloudClient) -> None:
    assert RefillConfig() == RefillConfig(backoff_ms=1_000, backoff_max_ms=60_000)
    clock = Clock()
    feed = session(clock, 1.0)
    cloud.answers = FAILING
    feed.refill(client)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        asked = len(cloud.requests)
        clock.ms += 1000 * seconds - 1
        assert feed.refill(client).error is None
        assert len(cloud.requests) == asked
        clock.ms += 1
        assert isinstance(feed.refill(client).error, BadStatusError)


@pytest.mark.parametrize(("share", "ms"), [(0.25, 5), (0.5, 10), (1.0, 20)])
def test_the_backoff_is_a_random_share_of_its_span(share: float, ms: int, cloud: Recorder, client: CloudClient) -> None:
    clock = Clock()
    feed = session(clock, share, RefillConfig(backoff_ms=20))
    cloud.answers = FAILING
    feed.refill(client)
    assert waited(feed, client, cloud, clock) == ms


def test_an_answer_resets_the_backoff(cloud: Recorder, client: CloudClient) -> None:
    clock = Clock()
    feed = session(clock, 1.0, RefillConfig(backoff_ms=10), paging=FixedPaging(consume=1, size=3))
    cloud.answers = FAILING
    feed.refill(client)
    assert [waited(feed, client, cloud, clock) for _ in range(2)] == [10, 20]
    cloud.answers = {}
    clock.ms += 40
    assert feed.refill(client).taken
    assert feed.next() is not None
    # The next request is due at once, and its failure begins with the first span again.
    cloud.answers = FAILING
    assert feed.refill(client).error is not None
    assert waited(feed, client, cloud, clock) == 10


def test_years_of_failures_do_no_harm(cloud: Recorder, client: CloudClient) -> None:
    clock = Clock()
    feed = session(clock, 1.0, RefillConfig(backoff_ms=1, backoff_max_ms=4))
    cloud.answers = FAILING
    for _ in range(100):
        assert feed.refill(client).error is not None
        clock.ms += 4
    assert clock.ms == T0 + 400


def test_a_request_is_of_the_wanted_size_and_scene(cloud: Recorder, client: CloudClient) -> None:
    feed = session(Clock(), 1.0, paging=FixedPaging(consume=2, size=4))
    assert feed.refill(client, scene=3).taken
    assert [(request.size, request.scene) for request in cloud.requests] == [(4, 3)]
    refill = feed.refill(client)
    assert (refill.decision.request, refill.taken, refill.error) == (False, False, None)
    assert len(cloud.requests) == 1


def test_a_page_that_is_refused_is_not_taken_and_not_asked_for_again_at_once(cloud: Recorder, client: CloudClient) -> None:
    clock = Clock()
    feed = session(clock, 1.0, paging=FixedPaging(consume=1, size=2))
    assert feed.refill(client).taken
    assert [feed.next(), feed.next()] == [0, 1]
    for _ in range(2):  # the same two items
        refill = feed.refill(client)
        assert (refill.decision.request, refill.taken, refill.error) == (True, False, None)
    assert feed.counters.pages_empty == 1
    assert [waited(feed, client, cloud, clock) for _ in range(3)] == [1_000, 2_000, 4_000]
    assert feed.counters.pages_empty == 4
    assert feed.counters.pages_missing == 0


def test_feedback_of_a_request_that_failed_goes_with_the_next(cloud: Recorder, client: CloudClient) -> None:
    clock = Clock()
    feed = session(clock, 0.0, paging=FixedPaging(consume=1, size=2))
    feed.refill(client)
    shown = feed.next()
    assert shown is not None
    feed.feedback(make_event(shown))
    cloud.answers = FAILING
    feed.refill(client)
    cloud.answers = {}
    feed.refill(client)
    first, second = (request.feedback for request in cloud.requests[1:])
    assert [event.item_id for event in first] == [shown]
    assert second == first
    assert feed.drain_feedback() == ()


class Broken(CloudClient):
    """A client that raises an error that is not a `ClientError`."""

    def page(self, request: PageRequest) -> Any:
        """Raise KeyboardInterrupt, as Ctrl-C does during a call."""
        raise KeyboardInterrupt


def test_an_error_that_is_not_the_clients_is_raised_and_keeps_the_feedback() -> None:
    feed = session(Clock(), 1.0)
    feed.feedback(make_event(1))
    with Broken("http://127.0.0.1:9") as client, pytest.raises(KeyboardInterrupt):
        feed.refill(client)
    assert feed.counters.pages_missing == 0
    assert [event.item_id for event in feed.drain_feedback()] == [1]


class Strict(Recorder):
    """A cloud that refuses whatever goes along with a page, and batches, while they hold an event of `bad`, as one that is
    older than the SDK may."""

    def __init__(self, bad: set[str], status: int) -> None:
        super().__init__()
        self.bad, self.status = bad, status

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        events = from_msgpack(body, PageRequest).feedback if path == "/v1/page" else from_msgpack(body, FeedbackBatch).events
        answered = super().handle(path, body)
        if self.bad & {event.event_id for event in events}:
            return self.status, b"no"
        if path != "/v1/page":
            return answered
        n = 2 * len(self.requests)
        return 200, to_msgpack(make_page([n, n + 1], request_id=self.requests[-1].request_id))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_events_that_the_cloud_refuses_stop_no_page_and_no_other_event(status: int) -> None:
    cloud, clock = Strict({"e2", "e5"}, status), Clock()
    with serving(cloud) as url, CloudClient(url) as client:
        feed = session(clock, 1.0, paging=FixedPaging(consume=1, size=2))
        for item in range(8):
            assert feed.feedback(make_event(1000 + item, event_id=f"e{item}"))
        for _ in range(16):
            assert feed.refill(client).taken
            assert feed.next() is not None
    arrived = [event.event_id for request in cloud.requests for event in request.feedback]
    assert feed.counters.events_refused == 2
    assert feed.drain_feedback() == ()
    assert {f"e{item}" for item in range(8)} == set(arrived)


class Failing(CloudClient):
    """A client whose calls with an event of `bad`, with more than `most` events, or with a report fail with `error`."""

    def __init__(self, error: ClientError, bad: str = "", most: int = 1000, *, reports: bool = True) -> None:
        super().__init__("http://127.0.0.1:1")
        self.error, self.bad, self.most, self.reports = error, bad, most, reports
        self.asked = 0
        self.arrived: set[str] = set()
        self.reported = Counter[str]()

    def page(self, request: PageRequest) -> Page:
        """Return a page of two new items."""
        self.asked += 1
        ids = {event.event_id for event in request.feedback}
        if self.bad in ids or len(ids) > self.most or (request.telemetry is not None and not self.reports):
            raise self.error
        self.arrived |= ids
        self.reported.update({} if request.telemetry is None else request.telemetry.counters)
        return make_page([2 * self.asked, 2 * self.asked + 1], request_id=request.request_id)


ERRORS = [
    *(BadStatusError("POST /v1/page", status, "no") for status in (401, 403, 406, 429, 431, 500, 502, 503)),
    UnreachableError("POST /v1/page", "timed out"),
]


def swiped(feed: FeedSession, client: CloudClient, clock: Clock, times: int) -> int:
    """Swipe every 6 s and return how often there was an item."""
    shown = 0
    for _ in range(times):
        feed.refill(client)
        shown += feed.next() is not None
        clock.ms += 6_000
    return shown


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(getattr(error, "status", "no answer")))
@pytest.mark.parametrize("waiting", [1, 5, 300])
def test_an_event_that_makes_requests_fail_in_any_way_stops_no_page(error: ClientError, waiting: int) -> None:
    clock = Clock()
    feed = session(clock, 1.0, paging=FixedPaging(consume=2, size=2))
    for item in range(waiting):
        assert feed.feedback(make_event(1000 + item, event_id=f"e{item}"))
    with Failing(error, bad=f"e{waiting // 2}") as client:
        assert swiped(feed, client, clock, 200) > 150
        assert client.arrived == {f"e{item}" for item in range(waiting)} - {client.bad}
    assert feed.counters.events_refused == 1
    assert feed.drain_feedback() == ()


def test_feedback_of_which_a_slow_network_takes_little_stops_no_page_and_arrives() -> None:
    clock = Clock()
    feed = session(clock, 1.0, paging=FixedPaging(consume=2, size=2))
    for item in range(600):
        assert feed.feedback(make_event(10_000 + item))
    with Failing(ERRORS[-1], most=25) as client:
        assert swiped(feed, client, clock, 300) > 250
        assert len(client.arrived) == 600
    assert feed.counters.events_refused == 0


def test_a_report_that_makes_requests_fail_is_dropped() -> None:
    clock = Clock()
    config = SessionConfig(telemetry=TelemetryConfig(rate=1), expects_model=False)
    feed = FeedSession(None, user_id=7, session_id="s", clock=clock, config=config, paging=FixedPaging(consume=2, size=2))
    assert feed.feedback(make_event(5000))
    with Failing(ERRORS[-2], reports=False) as client:
        shown = 0
        for at in range(400):
            shown += swiped(feed, client, clock, 1)
            assert feed.feedback(make_event(5_001 + at))
        assert shown > 250
        assert len(client.arrived) > 300
        client.reports = True
        swiped(feed, client, clock, 20)
        assert client.reported["reports_dropped"] > 0
    assert feed.counters.events_refused == 0


def test_a_network_that_is_down_costs_neither_feedback_nor_telemetry() -> None:
    clock = Clock()
    config = SessionConfig(telemetry=TelemetryConfig(rate=1), expects_model=False)
    feed = FeedSession(None, user_id=7, session_id="s", clock=clock, config=config)
    assert feed.feedback(make_event(5))
    with Failing(ERRORS[-1], bad="e5") as client:

        def down(request: PageRequest) -> Page:
            raise client.error

        client.page = down  # type: ignore[method-assign]
        assert swiped(feed, client, clock, 100) == 0
    assert [event.item_id for event in feed.drain_feedback()] == [5]
    with Failing(ERRORS[-1]) as client:
        assert feed.feedback(make_event(6))
        swiped(feed, client, clock, 30)
        assert client.arrived == {"e6"}
        assert client.reported["events"] == 2
    assert feed.counters.events_refused == 0


@pytest.mark.parametrize(("asked_s", "wait_s"), [(30.0, 30), (3.2e7, 60), (0.0, 0), (None, 0)])
def test_the_time_that_the_cloud_asks_for_is_waited_within_reason(asked_s: float | None, wait_s: int) -> None:
    clock = Clock()
    feed = session(clock, 0.0)
    with Failing(BadStatusError("POST /v1/page", 429, "busy", asked_s), bad="e5") as client:
        assert feed.feedback(make_event(5))
        feed.refill(client)
        if wait_s:
            clock.ms += 1000 * wait_s - 1
            feed.refill(client)
            assert client.asked == 1
            clock.ms += 1
        feed.refill(client)
        assert client.asked == 2


def test_telemetry_that_the_cloud_refuses_stops_no_page() -> None:
    class NoTelemetry(Recorder):
        def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
            answered = super().handle(path, body)
            return (400, b"no") if self.requests[-1].telemetry is not None else answered

    refusing = NoTelemetry()
    with serving(refusing) as url, CloudClient(url) as own:
        config = SessionConfig(telemetry=TelemetryConfig(rate=1), expects_model=False)
        feed = FeedSession(None, user_id=7, session_id="s", clock=Clock(), config=config)
        assert feed.feedback(make_event(5))
        assert feed.refill(own).taken
        assert [event.item_id for event in feed.drain_feedback()] == [5]
    assert [(request.telemetry is None, len(request.feedback)) for request in refusing.requests] == [(False, 1), (True, 0)]


def test_a_cloud_that_refuses_every_page_costs_no_event(cloud: Recorder, client: CloudClient) -> None:
    feed = session(Clock(), 1.0)
    assert feed.feedback(make_event(5))
    cloud.answers = {"/v1/page": (400, b"a hotel's network")}
    assert isinstance(feed.refill(client).error, BadStatusError)
    assert [event.item_id for event in feed.drain_feedback()] == [5]
    assert feed.counters.events_refused == 0


@pytest.mark.parametrize("change", [{"ttl_ms": 0}, {"ttl_ms": 1}, {"ttl_ms": -5}, {"items": []}, {"request_id": "another/1"}])
def test_answers_of_no_use_are_not_asked_for_at_every_swipe(change: dict[str, Any]) -> None:
    clock, asked = Clock(), []

    class Useless(CloudClient):
        def page(self, request: PageRequest) -> Page:
            asked.append(clock.ms)
            keys: dict[str, Any] = {"items": [len(asked)], "request_id": request.request_id} | change
            return make_page(keys.pop("items"), **keys)

    feed = session(clock, 0.5)
    with Useless("http://127.0.0.1:1") as client:
        for _ in range(50):
            feed.refill(client)
            feed.next()
            clock.ms += 100
    assert len(asked) <= 5


def test_a_clock_that_is_set_stops_no_request(cloud: Recorder, client: CloudClient) -> None:
    for step in (-86_400_000, -(2**40), 86_400_000, 2**40):
        clock = Clock()
        feed = session(clock, 1.0)
        cloud.answers = FAILING
        feed.refill(client)
        clock.ms += step
        cloud.answers = {}
        assert waited(feed, client, cloud, clock) <= 1_005
