import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import NO_FEEDBACK, FeedbackBatch, FeedbackEvent, FeedbackReceipt, PageRequest, RefusedEvent
from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import BadAnswerError, BadStatusError, UnreachableError
from pocketrank.device.offline.store import DeviceStore
from pocketrank.device.reports.telemetry import TelemetryConfig
from pocketrank.device.session import FeedSession, SessionConfig
from tests.device.network.test_client import Cloud, serving
from tests.device.worlds import Clock, make_event, make_page


def session(config: SessionConfig | None = None, **keys: Any) -> FeedSession:
    return FeedSession(None, user_id=7, session_id="s", clock=Clock(), config=config, **keys)


def watched(feed: FeedSession, *items: int) -> None:
    for item in items:
        assert feed.feedback(make_event(item))


def items(events: tuple[FeedbackEvent, ...]) -> list[int]:
    return [event.item_id for event in events]


def answer(request: PageRequest, item: int = 100) -> Any:
    return make_page([item], request_id=request.request_id)


# ------------------------------------------------------------------------------------------- feedback along with a request


def test_a_page_acknowledges_the_feedback_of_its_request() -> None:
    """Acknowledged events are known and gone: giving them back does not queue them again."""
    feed = session()
    watched(feed, 1, 2)
    request = feed.request(5)
    assert items(request.feedback) == [1, 2]
    feed.take(answer(request))
    feed.put_back(request.feedback)
    feed.request_failed(request)
    assert feed.drain_feedback() == ()
    assert not feed.feedback(make_event(1))


def test_feedback_that_a_page_acknowledged_has_left_the_disk(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "device.db") as store:
        feed = session(store=store)
        watched(feed, 1, 2)
        request = feed.request(5)
        watched(feed, 3)
        feed.take(answer(request))
    with DeviceStore(tmp_path / "device.db") as store:
        assert items(session(store=store).drain_feedback()) == [3]


def test_a_page_acknowledges_nothing_of_another_request() -> None:
    feed = session()
    watched(feed, 1)
    first = feed.request(5)
    watched(feed, 2)
    second = feed.request(5)
    feed.take(answer(first))
    feed.request_failed(second)
    assert items(feed.drain_feedback()) == [2]


@pytest.mark.parametrize("request_id", ["", "s/9", "other/1"])
def test_a_page_of_no_request_acknowledges_nothing(request_id: str) -> None:
    feed = session()
    watched(feed, 1)
    request = feed.request(5)
    feed.take(make_page([100], request_id=request_id))
    feed.request_failed(request)
    assert items(feed.drain_feedback()) == [1]


def test_a_page_acknowledges_what_was_not_put_back_before() -> None:
    feed = session()
    watched(feed, 1, 2, 3)
    request = feed.request(5)
    feed.put_back(request.feedback[1:])
    feed.take(answer(request))
    feed.put_back(request.feedback)
    assert items(feed.drain_feedback()) == [2, 3]


def test_a_request_takes_the_oldest_feedback_up_to_its_limit() -> None:
    feed = session(SessionConfig(request_events_max=2))
    watched(feed, 1, 2, 3)
    assert items(feed.request(5).feedback) == [1, 2]
    assert items(feed.request(5).feedback) == [3]


def test_a_request_takes_no_more_than_a_quarter_of_a_megabyte_of_feedback() -> None:
    feed = session()
    for item in range(40):
        assert feed.feedback(make_event(item, page_id="p" * 15_000))
    first = len(feed.request(5).feedback)
    assert first == (256 << 10) // 15_300


def test_only_the_last_eight_requests_are_remembered() -> None:
    feed = session()
    requests = []
    for item in range(9):
        watched(feed, item)
        requests.append(feed.request(5))
    assert items(feed.drain_feedback()) == [0]  # that of the first request, which is forgotten
    feed.take(answer(requests[1]))
    feed.put_back(requests[1].feedback)
    assert feed.drain_feedback() == ()


def test_a_request_that_is_no_longer_known_fails_with_its_own_feedback() -> None:
    feed = session()
    watched(feed, 1)
    events = feed.drain_feedback()
    feed.request_failed(PageRequest(request_id="own", user_id=7, session_id="s", now_ms=0, size=1, feedback=events))
    assert feed.drain_feedback() == events


# ------------------------------------------------------------------------------------------------------------- telemetry

REPORTING = SessionConfig(telemetry=TelemetryConfig())


def test_telemetry_goes_along_once_and_again_when_the_request_failed() -> None:
    feed = session(REPORTING)
    watched(feed, 1)
    first = feed.request(5)
    assert first.telemetry is not None
    assert first.telemetry.counters["events"] == 1
    feed.request_failed(first)
    second = feed.request(5)
    assert second.telemetry == first.telemetry
    feed.take(answer(second))
    feed.request_failed(second)  # it was answered
    third = feed.request(5).telemetry
    assert third is not None
    assert third.report_id != first.telemetry.report_id
    assert "events" not in third.counters


def test_telemetry_stays_where_the_policy_says_so() -> None:
    feed = session(SessionConfig(telemetry=TelemetryConfig(), privacy=PrivacyPolicy(telemetry=False)))
    watched(feed, 1)
    assert feed.request(5).telemetry is None


# ---------------------------------------------------------------------------------------------------------------- flush


class Recorder(Cloud):
    """A cloud that keeps the batches of feedback."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[FeedbackBatch] = []

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.batches.append(from_msgpack(body, FeedbackBatch))
        return super().handle(path, body)


def test_flush_sends_everything_in_batches_and_the_report_once() -> None:
    feed, cloud = session(SessionConfig(telemetry=TelemetryConfig(), request_events_max=2)), Recorder()
    watched(feed, 1, 2, 3)
    with serving(cloud) as url, CloudClient(url) as client:
        assert feed.flush(client) == 3
        assert [len(batch.events) for batch in cloud.batches] == [2, 1]
        assert [batch.telemetry is not None for batch in cloud.batches] == [True, False]
        assert feed.flush(client) == 0
        assert len(cloud.batches) == 2  # nothing was left to send
    feed.put_back(cloud.batches[0].events)
    assert feed.drain_feedback() == ()


def test_flush_sends_a_report_without_feedback() -> None:
    feed, cloud = session(REPORTING), Recorder()
    feed.take(make_page([1, 2]))
    with serving(cloud) as url, CloudClient(url) as client:
        assert feed.flush(client) == 0
    (batch,) = cloud.batches
    assert batch.events == ()
    assert batch.telemetry is not None


def test_a_flush_that_fails_keeps_what_was_not_acknowledged() -> None:
    feed, cloud = session(SessionConfig(telemetry=TelemetryConfig(), request_events_max=2)), Recorder()
    watched(feed, 1, 2, 3)
    with serving(cloud) as url, CloudClient(url) as client:
        cloud.answers = {"/v1/feedback": (500, b"no")}
        with pytest.raises(BadStatusError):
            feed.flush(client)
        cloud.answers = {}
        assert feed.flush(client) == 3
    failed, first, _ = cloud.batches
    assert failed == first


def test_a_page_of_another_request_is_refused_while_one_is_under_way() -> None:
    feed = session()
    assert feed.take(make_page([1, 2]))
    watched(feed, 1)
    request = feed.request(5)
    assert not feed.take(make_page([901], request_id="theirs/1"))
    assert feed.counters.pages_refused == 1
    assert feed.remaining.tolist() == [2]
    assert feed.take(answer(request))


def test_feedback_that_the_cloud_could_not_keep_waits_again() -> None:
    feed = session()
    watched(feed, 1, 2)
    feed.take(msgspec.structs.replace(answer(feed.request(5)), degraded=("no_vectors", NO_FEEDBACK)))
    assert items(feed.drain_feedback()) == [1, 2]


class Answering(CloudClient):
    """A client whose receipts are given."""

    def __init__(self, accepted: int, duplicates: int, refused: list[int]) -> None:
        super().__init__("http://127.0.0.1:1")
        named = tuple(RefusedEvent(index=index, reason="no") for index in refused)
        self.receipt = FeedbackReceipt(accepted=accepted, duplicates=duplicates, refused=named)

    def send_feedback(self, events: Any, telemetry: Any = None) -> FeedbackReceipt:
        """Return the receipt."""
        return self.receipt


@pytest.mark.parametrize(
    ("accepted", "duplicates", "refused"),
    [(0, 0, []), (2, 0, []), (1, 1, [0, 1]), (4, -2, [1]), (-1, 4, []), (2, 0, [3]), (2, 0, [-1]), (1, 0, [1, 1])],
)
def test_a_receipt_for_other_events_settles_none(accepted: int, duplicates: int, refused: list[int]) -> None:
    feed = session()
    watched(feed, 1, 2, 3)
    with Answering(accepted, duplicates, refused) as client, pytest.raises(BadAnswerError, match="3 events"):
        feed.flush(client)
    assert len(feed.drain_feedback()) == 3


@pytest.mark.parametrize(("accepted", "duplicates", "refused"), [(3, 0, []), (1, 2, []), (1, 1, [1]), (0, 0, [2, 0, 1])])
def test_a_receipt_that_speaks_of_each_event_settles_all(accepted: int, duplicates: int, refused: list[int]) -> None:
    feed = session()
    watched(feed, 1, 2, 3)
    with Answering(accepted, duplicates, refused) as client:
        assert feed.flush(client) == accepted + duplicates
    assert feed.counters.events_refused == len(refused)
    assert feed.drain_feedback() == ()


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_network_that_refuses_everything_costs_no_event_and_no_report(status: int) -> None:
    feed, cloud = session(SessionConfig(telemetry=TelemetryConfig())), Recorder()
    watched(feed, 1, 2, 3)
    with serving(cloud) as url, CloudClient(url) as client:
        cloud.answers = {"/v1/feedback": (status, b"sign in")}
        with pytest.raises(BadStatusError):
            feed.flush(client)
        cloud.answers = {}
        assert feed.flush(client) == 3
    assert feed.counters.events_refused == 0
    assert [len(batch.events) for batch in cloud.batches] == [3, 0, 3]
    assert cloud.batches[-1].telemetry == cloud.batches[0].telemetry is not None


def test_a_flush_that_takes_too_long_sends_less_the_next_time() -> None:
    sizes: list[int] = []

    class Slow(CloudClient):
        def send_feedback(self, events: Any, telemetry: Any = None) -> FeedbackReceipt:
            sizes.append(len(events))
            if len(events) > 20:
                raise UnreachableError("POST /v1/feedback", "timed out")
            return FeedbackReceipt(accepted=len(events), duplicates=0)

    feed = session()
    watched(feed, *range(200))
    with Slow("http://127.0.0.1:1") as client:
        for _ in range(20):
            with contextlib.suppress(UnreachableError):
                feed.flush(client)
    assert sizes[:3] == [200, 50, 16]
    assert feed.drain_feedback() == ()


def test_a_flush_drops_only_what_the_cloud_refuses_by_itself() -> None:
    sent: list[list[int]] = []

    class Strict(CloudClient):
        def send_feedback(self, events: Any, telemetry: Any = None) -> FeedbackReceipt:
            sent.append(items(events))
            if telemetry is not None or 3 in items(events):
                raise BadStatusError("POST /v1/feedback", 413, "no")
            return FeedbackReceipt(accepted=len(events), duplicates=0)

    feed = session(SessionConfig(telemetry=TelemetryConfig(rate=1)))
    watched(feed, 1, 2, 3, 4, 5)
    with Strict("http://127.0.0.1:1") as client:
        assert feed.flush(client) == 4
    assert feed.counters.events_refused == 1
    assert feed.drain_feedback() == ()
    assert sent[:3] == [[1, 2, 3, 4, 5], [], [1, 2, 3, 4, 5]]
