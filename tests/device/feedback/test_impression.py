import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import (
    WATCH_MS_MAX,
    ContractError,
    Ended,
    FeedbackEvent,
    Network,
    Orientation,
    check_event,
    id_code,
)
from pocketrank.device.feedback.impression import DeviceState, Impression
from tests.device.feedback.test_privacy import UNREPORTED, reported
from tests.device.worlds import T0, Clock, PhoneClock


def begin(clock: Clock | PhoneClock, **keys: Any) -> Impression:
    return Impression(11, **{"position": 3, "user_id": 7, "session_id": "s", "clock": clock} | keys)


def test_what_nobody_reported_is_missing() -> None:
    assert begin(Clock(), event_id="own").finish() == FeedbackEvent(
        event_id="own", user_id=7, session_id="s", item_id=11, position=3, impression_ms=T0, watch_ms=0
    )


def test_everything_reported_is_in_the_event() -> None:
    clock = PhoneClock()
    device = DeviceState(volume=0.5, network=Network.WIFI)
    shown = begin(clock, device=device, page_id="p", experiment="x", event_id="own")
    shown.buffering()
    clock.true_ms += 120
    shown.buffered()
    clock.true_ms += 400
    shown.paused()
    clock.true_ms += 10_000
    shown.resumed()
    clock.true_ms += 300
    shown.backgrounded()
    clock.true_ms += 60_000
    shown.foregrounded()
    clock.true_ms += 7
    device.volume, device.muted, device.orientation = 0.75, True, Orientation.LANDSCAPE
    device.network, device.battery_saver = Network.CELLULAR, True
    for action in ("click", "like", "follow", "comment", "share", "profile_enter", "dislike"):
        shown.did(action)
    shown.action("purchase")
    shown.seeked()
    shown.seeked()
    shown.playback_rate(1.5)
    shown.scrolled(-2.5)
    event = shown.finish(Ended.COMPLETE)
    assert event == FeedbackEvent(
        event_id="own", user_id=7, session_id="s", item_id=11, position=3, impression_ms=T0, watch_ms=707, page_id="p",
        experiment="x", ended=Ended.COMPLETE, click=True, like=True, follow=True, comment=True, share=True, profile_enter=True,
        dislike=True, volume=0.75, volume_change=0.25, muted=True, orientation=Orientation.LANDSCAPE, playback_rate=1.5,
        pauses=1, seeks=2, scroll_speed=2.5, network=Network.CELLULAR, buffering_ms=120, battery_saver=True, backgrounded=True,
        age_ms=70_827, actions=("purchase",),
    )  # fmt: skip
    assert reported(event) == UNREPORTED.keys()  # a field that the contract gains fails here until a listener reports it


@pytest.mark.parametrize("step_ms", [0, 3 * 365 * 86_400_000, -T0])
def test_age_and_watch_are_the_time_that_passed(step_ms: int) -> None:
    clock = PhoneClock()
    shown = begin(clock)
    clock.true_ms += 4_000
    clock.off_ms += step_ms
    clock.true_ms += 5_000
    event = shown.finish()
    assert (event.impression_ms, event.age_ms, event.watch_ms) == (T0, 9_000, 9_000)


def test_a_clock_of_which_no_step_is_known_gives_no_age() -> None:
    assert begin(Clock()).finish().age_ms is UNSET


def test_an_impression_names_its_item() -> None:
    shown = begin(Clock(), event_id="own")
    assert shown.item_id == 11
    assert repr(shown) == "<Impression of item 11, event own, on screen>"
    shown.finish()
    assert repr(shown) == "<Impression of item 11, event own, finished>"


def test_what_a_platform_counts_begins_at_zero() -> None:
    event = begin(Clock(), device=DeviceState(counted=frozenset({"pauses", "buffering_ms", "backgrounded"}))).finish()
    assert (event.pauses, event.seeks, event.buffering_ms) == (0, None, 0)
    assert event.backgrounded is False
    with pytest.raises(ValueError, match="expected names among"):
        DeviceState(counted=frozenset({"volume"}))  # type: ignore[arg-type]


def test_the_device_carries_over_to_the_next_item() -> None:
    clock, device = Clock(), DeviceState()
    first = begin(clock, device=device)
    device.volume, device.muted = 0.25, True
    assert first.finish().volume_change is None  # the volume at the beginning is not known
    second = begin(clock, device=device, position=4)
    device.volume = 1.0
    event = second.finish()
    assert (event.volume, event.volume_change, event.muted) == (1.0, 0.75, True)


def test_an_action_can_be_taken_back_and_another_is_refused() -> None:
    shown = begin(Clock())
    shown.did("like")
    shown.did("like", False)
    with pytest.raises(ValueError, match="expected one of click"):
        shown.did("lik")  # type: ignore[arg-type]
    assert shown.finish().like is False


def test_a_second_finish_and_a_late_listener_change_nothing() -> None:
    clock, device = Clock(), DeviceState(volume=0.5)
    shown = begin(clock, device=device)
    clock.ms += 900
    event = shown.finish(Ended.SWIPE)
    clock.ms += 50
    device.volume = 1.0
    shown.did("like")
    shown.buffering()
    shown.seeked()
    assert shown.finish(Ended.BACKGROUND) == event
    assert event.watch_ms == 900


def test_a_clock_that_goes_back_costs_one_step() -> None:
    clock = Clock()
    shown = begin(clock)
    clock.ms += 500
    shown.seeked()  # does not look at the clock
    shown.resumed()
    clock.ms -= 3_600_000
    shown.resumed()
    clock.ms += 250
    assert shown.finish().watch_ms == 750


def test_pauses_are_the_users() -> None:
    clock = Clock()
    shown = begin(clock)
    shown.paused()
    shown.paused()
    shown.resumed()
    shown.backgrounded()
    shown.paused()  # the player's own
    clock.ms += 1_000
    shown.foregrounded()
    clock.ms += 30
    event = shown.finish()
    assert (event.pauses, event.watch_ms) == (1, 30)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, None, "loud"])
def test_what_is_no_number_is_ignored(strange: Any) -> None:
    shown = begin(Clock(), device=DeviceState(volume=strange))
    shown.playback_rate(strange)
    shown.scrolled(strange)
    event = shown.finish()
    assert (event.volume, event.volume_change, event.playback_rate, event.scroll_speed) == (None, None, None, None)


@pytest.mark.parametrize(("reported", "volume"), [(-0.1, 0.0), (7, 1.0), (0, 0.0)])
def test_a_volume_is_cut_to_its_limits(reported: float, volume: float) -> None:
    assert begin(Clock(), device=DeviceState(volume=reported)).finish().volume == volume


@pytest.mark.parametrize("rate", [0, -1.0])
def test_a_rate_of_zero_or_below_is_ignored(rate: float) -> None:
    shown = begin(Clock())
    shown.playback_rate(1.25)
    shown.playback_rate(rate)
    assert shown.finish().playback_rate == 1.25


CALLS = ("backgrounded", "buffered", "buffering", "foregrounded", "paused", "resumed")


@given(st.lists(st.tuples(st.integers(-5_000, 5_000), st.sampled_from(CALLS)), max_size=30), st.sampled_from(Ended))
def test_any_order_of_calls_gives_a_whole_event_and_the_same_again(steps: list[tuple[int, str]], ended: Ended) -> None:
    def play() -> FeedbackEvent:
        clock = Clock()
        shown = begin(clock, event_id="own")
        for ms, call in steps:
            clock.ms += ms
            getattr(shown, call)()
        clock.ms += 1
        return shown.finish(ended)

    event = play()
    assert play() == event
    assert from_msgpack(to_msgpack(event), FeedbackEvent) == event
    forward = sum(max(0, ms) for ms, _ in steps) + 1
    names = [name for _, name in steps]
    assert 0 <= event.watch_ms + (event.buffering_ms or 0) <= forward
    if not {"paused", "backgrounded"} & set(names):
        assert event.watch_ms + (event.buffering_ms or 0) == forward
    assert (event.buffering_ms is not None) == ("buffering" in names)
    assert (event.backgrounded is True) == ("backgrounded" in names)


def test_ids_are_unique_whatever_the_app_passes_and_short_whatever_its_session() -> None:
    ids = [begin(Clock(), session_id="s" * n).finish().event_id for n in (0, 1, 1, 5000)]
    assert len(set(ids)) == 4
    assert max(map(len, ids)) <= 32


def test_ids_of_a_forked_process_are_its_own() -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        theirs = pool.submit(_ids, 3).result()
    assert not set(theirs) & set(_ids(3))
    assert len({name.partition("/")[0] for name in (*theirs, *_ids(1))}) == 2


def _ids(count: int) -> list[str]:
    return [begin(Clock()).finish().event_id for _ in range(count)]


def test_a_clock_that_is_set_changes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time_ns
    for years in (-11, 11):
        shown = Impression(1, position=0, user_id=7, session_id="s")
        monkeypatch.setattr(time, "time_ns", lambda years=years: real() + years * 365 * 86_400 * 10**9)
        assert shown.finish().watch_ms < 60_000
        monkeypatch.undo()


def test_a_watch_is_a_day_at_most() -> None:
    clock = Clock()
    shown = begin(clock)
    clock.ms += 2**41
    event = shown.finish()
    check_event(event)
    assert event.watch_ms == WATCH_MS_MAX


def test_actions_of_the_app_are_in_the_event_in_their_order() -> None:
    shown = begin(Clock(), event_id="own")
    for name in ("purchase", "add_to_cart", "purchase"):
        shown.action(name)
    shown.action("gift")
    shown.action("gift", False)
    event = shown.finish()
    assert event.actions == ("purchase", "add_to_cart")
    check_event(event)
    assert begin(Clock()).finish().actions is UNSET


@pytest.mark.parametrize("name", ["like", "watch_ms", "Purchase", "", "1st", "a" * 49, "purchase\n"])
def test_names_that_no_action_may_have(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name like `purchase`"):
        begin(Clock()).action(name)


def test_actions_of_an_item_are_bounded() -> None:
    shown = begin(Clock())
    for i in range(32):
        shown.action(f"a{i}")
    shown.action("a0")
    with pytest.raises(ValueError, match="at most 32 actions"):
        shown.action("one_more")


def test_own_ids_become_codes() -> None:
    shown = Impression("Ünï-1", position=0, user_id="u-1", session_id="s", clock=Clock())
    event = shown.finish()
    assert (event.item_id, event.user_id) == (id_code("Ünï-1"), id_code("u-1"))
    with pytest.raises(ContractError, match=r"1 to 256 characters, got 0 characters - at `\$.item_id`"):
        Impression("", position=0, user_id=1, session_id="s")
