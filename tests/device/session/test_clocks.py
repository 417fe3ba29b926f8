"""What a session does while the phone's clock is set, by years and at any moment."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.device.clock import SteadyClock, wall_clock
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.session import FeedSession
from tests.device.worlds import T0, Clock, make_bundle, make_event, make_page

HOUR = 3_600_000


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return Ranker.open(make_bundle(tmp_path_factory.mktemp("bundle")))


def test_a_steady_clock_begins_with_the_time_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    began = clock()
    assert abs(began - wall_clock()) < 60_000
    for years in (-50, 50):
        monkeypatch.setattr("pocketrank.device.clock.time.time_ns", lambda years=years: (T0 + years * 365 * 24 * HOUR) * 10**6)
        assert 0 <= clock() - began < 60_000
    assert abs(clock.ahead_ms() + T0 + 50 * 365 * 24 * HOUR - began) < 60_000


@given(st.lists(st.integers(-(2**45), 2**45), max_size=20))
def test_steps_of_another_clock_count_when_they_are_ahead(steps: list[int]) -> None:
    wall = Clock()
    clock = SteadyClock(wall)
    for step in steps:
        wall.ms += step
        clock()
    assert clock() == T0 + sum(step for step in steps if step > 0)
    assert clock.ahead_ms() == -sum(step for step in steps if step < 0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-(2**42), 2**42)), max_size=4))
def test_a_clock_that_is_set_makes_no_event_late(ranker: Ranker, steps: list[tuple[int, int]]) -> None:
    clock = Clock()
    feed = FeedSession(ranker, user_id=7, session_id="s", clock=clock)
    feed.take(make_page(list(range(60))))
    set_at = dict(steps)
    for swipe in range(6):
        item = feed.next()
        assert item is not None
        began = clock.ms
        clock.ms += 9_000
        feed.feedback(make_event(item, swipe, impression_ms=min(max(0, began), 2**47)))
        clock.ms = min(max(2**40, clock.ms + set_at.get(swipe, 0)), 2**46)
    assert feed.counters.events_late == 0


def test_events_stay_in_their_order_when_a_clock_is_put_back(ranker: Ranker) -> None:
    orders = []
    for back in (0, HOUR, 30 * 365 * 24 * HOUR):
        clock = Clock()
        feed = FeedSession(ranker, user_id=7, session_id="s", clock=clock)
        feed.take(make_page(list(range(30))))
        for swipe in range(12):
            if swipe == 6:
                clock.ms -= back
            item = feed.next()
            assert item is not None
            event = make_event(item, swipe, impression_ms=clock.ms, like=swipe >= 6)
            clock.ms += 9_000
            feed.feedback(event)
        orders.append(feed.remaining.tolist())
    assert orders[0] == orders[1] == orders[2]


def test_a_page_is_stale_after_its_time_whatever_the_clock_is_set_to() -> None:
    for step in (5 * HOUR, 5 * HOUR - 24 * HOUR, -(2**41)):
        clock = Clock()
        feed = FeedSession(None, user_id=7, session_id="s", clock=clock)
        feed.take(make_page([1, 2, 3]))
        clock.ms += step
        assert feed.wants_page().request


def test_a_stored_page_is_as_old_as_its_date_is_far(tmp_path: Path) -> None:
    from pocketrank.device.offline.store import DeviceStore

    with DeviceStore(tmp_path / "device.db") as store:
        FeedSession(None, user_id=7, session_id="s", clock=Clock(), store=store).take(make_page([1, 2, 3], ttl_ms=1000))
        for ms, restored in ((T0 + 999, True), (T0 - 999, True), (T0 + 1000, False), (T0 - 1000, False)):
            again = FeedSession(None, user_id=7, session_id="s", clock=Clock(ms), store=store)
            assert again.restore() is restored
