"""Against a real server that can be told to fail."""

import random
from collections.abc import Iterator, Sequence
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reliability.faulty_cloud import FAULTS, Fault, FaultyCloud
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import BadStatusError, ClientError, UnreachableError
from pocketrank.device.offline.outbox import MemoryOutbox
from pocketrank.device.offline.upload import UploadConfig, Uploader
from tests.device.worlds import make_event, make_page

TIMEOUT_S = 0.1


@pytest.fixture
def cloud() -> FaultyCloud:
    return FaultyCloud(lambda request: make_page([1]), slow_s=2 * TIMEOUT_S)


@pytest.fixture
def client(cloud: FaultyCloud) -> Iterator[CloudClient]:
    with cloud.serving() as url, CloudClient(url, timeout_s=TIMEOUT_S) as client:
        yield client


def outbox(count: int) -> MemoryOutbox:
    box = MemoryOutbox()
    for item in range(count):
        box.add(make_event(item))
    return box


def refusing(status: int, retry_after_s: float | None = None) -> BadStatusError:
    return BadStatusError("POST x", status, "", retry_after_s)


def ok(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
    return FeedbackReceipt(accepted=len(events), duplicates=0)


def test_waiting_events_are_sent_in_batches(cloud: FaultyCloud, client: CloudClient) -> None:
    box, config = outbox(10), UploadConfig(events_max=4, every_s=7.0)
    uploader = Uploader(box, client.send_feedback, config)
    assert [uploader.step() for _ in range(4)] == [0.0, 0.0, 7.0, 7.0]
    assert len(box) == 0
    assert list(cloud.events) == [f"e{item}" for item in range(10)]
    assert cloud.calls == {"200": 3}
    assert (uploader.counters.batches, uploader.counters.events) == (3, 10)


def test_batches_are_bounded_by_bytes(cloud: FaultyCloud, client: CloudClient) -> None:
    uploader = Uploader(outbox(3), client.send_feedback, UploadConfig(bytes_max=1))
    while uploader.step() == 0:
        pass
    assert cloud.calls == {"200": 3}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_batch_is_sent_again_and_applied_once(cloud: FaultyCloud, client: CloudClient, fault: Fault) -> None:
    box = outbox(3)
    uploader = Uploader(box, client.send_feedback, UploadConfig(events_max=2))
    cloud.fault = fault
    uploader.step()
    uploader.step()
    assert uploader.counters.failed >= 1
    cloud.fault = None
    while len(box):
        uploader.step()
    assert sorted(cloud.events) == ["e0", "e1", "e2"]
    if fault in ("cut", "garbage"):  # the cloud had applied them, but its answer was lost
        assert uploader.counters.duplicates > 0


def test_a_receipt_for_another_batch_is_a_failure() -> None:
    box = outbox(3)
    receipts = [FeedbackReceipt(accepted=0, duplicates=0), FeedbackReceipt(accepted=4, duplicates=-2)]
    uploader = Uploader(box, lambda events: receipts.pop())
    uploader.step()
    uploader.step()
    assert (len(box), uploader.counters.failed) == (3, 2)


@given(st.sets(st.integers(0, 40)))
def test_refused_events_are_dropped_and_all_others_arrive(bad: set[int]) -> None:
    box, arrived = outbox(40), []

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        if bad & {event.item_id for event in events}:
            raise refusing(422)
        arrived.extend(event.item_id for event in events)
        return ok(events)

    uploader = Uploader(box, send, UploadConfig(events_max=16))
    while len(box):
        uploader.step()
    assert arrived == [item for item in range(40) if item not in bad]
    assert uploader.counters.refused == len(bad - {40})


def test_one_refused_event_of_a_batch_over_http(cloud: FaultyCloud, client: CloudClient) -> None:
    box = outbox(9)
    cloud.refuses = lambda event: event.item_id == 5
    uploader = Uploader(box, client.send_feedback)
    while len(box):
        uploader.step()
    assert sorted(cloud.events) == [f"e{item}" for item in range(9) if item != 5]
    assert uploader.counters.refused == 1


def test_a_cloud_that_refuses_everything_costs_no_event() -> None:
    """As a hotel's network does, until somebody has signed in."""
    box = outbox(100)

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        raise refusing(400)

    uploader = Uploader(box, send, rng=random.Random(0))
    spent = 0.0
    while spent < 3600:
        spent += uploader.step()
    assert (len(box), uploader.counters.refused) == (100, 0)


@pytest.mark.parametrize("error", [refusing(500), refusing(403), UnreachableError("POST x", "timed out")])
def test_an_event_that_fails_alone_again_and_again_keeps_no_other_from_its_upload(error: ClientError) -> None:
    box, arrived = outbox(9), []

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        if 3 in (items := [event.item_id for event in events]):
            raise error
        arrived.extend(items)
        return ok(events)

    uploader = Uploader(box, send)
    steps = 0
    while len(box):
        uploader.step()
        steps += 1
        assert uploader.counters.refused == 0 or steps > 8
    assert arrived == [item for item in range(9) if item != 3]
    assert uploader.counters.refused == 1


def test_an_event_that_is_to_come_later_is_never_dropped() -> None:
    box = outbox(1)

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        if events:
            raise refusing(503, 1.0)
        return ok(events)

    uploader = Uploader(box, send)
    for _ in range(30):
        uploader.step()
    assert (len(box), uploader.counters.refused) == (1, 0)


def test_batches_shrink_until_a_slow_network_takes_them_in_time() -> None:
    box = outbox(400)

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        if len(events) > 30:
            raise UnreachableError("POST x", "timed out")
        return ok(events)

    uploader = Uploader(box, send)
    for _ in range(60):
        uploader.step()
    assert (len(box), uploader.counters.events, uploader.counters.refused) == (0, 400, 0)


def test_only_the_events_of_one_user_are_sent() -> None:
    box, arrived = MemoryOutbox(), []
    for user in (7, 8, 7, 70):
        box.add(make_event(user, user_id=user, event_id=f"{len(box)}"))

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        arrived.extend(event.user_id for event in events)
        return ok(events)

    assert [Uploader(box, send, UploadConfig(every_s=7.0), user_id=7).step() for _ in range(2)] == [0.0, 7.0]
    assert arrived == [7, 7]
    assert [event.user_id for event in box.take()] == [8, 70]


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_other_statuses_drop_nothing(status: int) -> None:
    box = outbox(1)

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        raise refusing(status)

    uploader = Uploader(box, send)
    for _ in range(20):
        uploader.step()
    assert (len(box), uploader.counters.failed) == (1, 20)


def test_the_backoff_doubles_to_its_bound_with_full_jitter_and_replays() -> None:
    answers: list[Exception | None] = []

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        if not events:  # to find out whether it is the event that is refused
            raise refusing(503)
        if (error := answers.pop(0)) is not None:
            raise error
        return ok(events)

    def waits(seed: int, failures: int) -> list[float]:
        answers[:] = [refusing(503)] * failures + [None] + [refusing(503)]
        uploader = Uploader(outbox(2), send, UploadConfig(events_max=1, backoff_s=1, backoff_max_s=60), rng=random.Random(seed))
        return [uploader.step() for _ in range(failures + 2)]

    drawn = [waits(seed, 80) for seed in range(200)]
    assert drawn[3] == waits(3, 80)
    for place, span in [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (79, 60)]:
        column = [run[place] for run in drawn]
        assert 0 <= min(column) < 0.1 * span
        assert 0.9 * span < max(column) <= span
    assert {run[80] for run in drawn} == {0.0}
    assert max(run[81] for run in drawn) <= 1, "a success ends it"


@pytest.mark.parametrize(("asked", "low", "high"), [(30.0, 30, 31), (1e9, 3600, 3601), (-5.0, 0, 1), (float("nan"), 0, 1)])
def test_what_the_cloud_asks_for_is_honoured_within_reason(asked: float, low: float, high: float) -> None:
    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        raise refusing(429, asked)

    assert low <= Uploader(outbox(1), send).step() <= high


def test_the_thread_sends_new_events_and_a_kick_wakes_it(cloud: FaultyCloud, client: CloudClient) -> None:
    box, sent = MemoryOutbox(), Event()

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        receipt = client.send_feedback(events)
        sent.set()
        return receipt

    with Uploader(box, send, UploadConfig(every_s=3600)) as uploader:
        for item in range(3):
            box.add(make_event(item))
            uploader.kick()
            assert sent.wait(10)
            sent.clear()
    assert uploader.close()
    assert sorted(cloud.events) == ["e0", "e1", "e2"]


def test_the_thread_outlives_a_sender_that_raises_anything() -> None:
    box, done, raised = outbox(1), Event(), []

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        if len(raised) < 3:
            raised.append(1)
            raise KeyError("the app's own")
        done.set()
        return ok(events)

    with Uploader(box, send, UploadConfig(backoff_s=1e-3)) as uploader:
        assert done.wait(10)
    assert uploader.counters.errors == 3
    assert len(box) == 0


def test_close_waits_no_longer_than_it_may() -> None:
    box, begun, go_on = outbox(1), Event(), Event()

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        begun.set()
        go_on.wait(10)
        return ok(events)

    uploader = Uploader(box, send)
    uploader.start()
    assert begun.wait(10)
    assert not uploader.close(timeout_s=0)
    go_on.set()
    assert uploader.close(timeout_s=10)
    assert uploader.counters.events == 1
    uploader.start()  # a closed one stays closed
    assert uploader.close()


def test_a_long_wait_that_the_cloud_asks_for_has_jitter_on_top() -> None:
    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        raise refusing(503, 30.0)

    waits = {Uploader(outbox(1), send, rng=random.Random(seed)).step() for seed in range(20)}
    assert len(waits) == 20, "devices that were refused together must not return together"


def test_a_batch_shrinks_by_halves_and_grows_again_to_its_bound() -> None:
    box, sizes = outbox(60), []

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        sizes.append(len(events))
        if len(sizes) <= 3:
            raise refusing(422)
        return ok(events)

    uploader = Uploader(box, send, UploadConfig(events_max=16))
    while len(box):
        uploader.step()
    assert sizes == [16, 8, 4, 2, 4, 8, 16, 16, 14]


def test_a_sender_that_raises_anything_loses_no_event() -> None:
    box = outbox(3)

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        raise KeyError("the app's own")

    uploader = Uploader(box, send)
    with pytest.raises(KeyError):
        uploader.step()
    assert len(box) == 3


def test_each_step_tidies_the_outbox() -> None:
    class Tidied(MemoryOutbox):
        times = 0

        def tidy(self) -> None:
            self.times += 1

    box = Tidied()
    box.add(make_event(1))
    uploader = Uploader(box, ok)
    uploader.step()
    uploader.step()
    assert box.times == 2


def test_duplicates_are_counted() -> None:
    uploader = Uploader(outbox(3), lambda events: FeedbackReceipt(accepted=1, duplicates=2))
    uploader.step()
    assert (uploader.counters.events, uploader.counters.duplicates) == (3, 2)
