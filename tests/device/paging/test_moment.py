import math

import pytest

from pocketrank.device.contract import FeedbackEvent, Network
from pocketrank.device.paging import PagingMoment


def _event(**more: object) -> FeedbackEvent:
    fields = {"event_id": "e", "user_id": 1, "session_id": "s", "item_id": 1, "position": 0, "impression_ms": 0, "watch_ms": 0}
    return FeedbackEvent(**fields | more)  # type: ignore[arg-type]


def _state(moment: PagingMoment) -> dict[str, object]:
    return moment.state(5, 1, 0, 1000, 1.0, 7)._asdict()


def test_values_are_those_of_now_and_those_of_the_pages_arrival() -> None:
    moment = PagingMoment()
    moment.page()
    moment.ranked([0.9, 0.6, 0.3, 0.1])
    moment.ranked([0.5, 0.1])
    told = _state(moment)
    assert (told["best"], told["top"]) == (0.5, 0.3)
    assert told["arrived"] == pytest.approx(0.6)
    assert told["position"] == 7


def test_a_new_page_and_an_order_without_a_model_have_no_values() -> None:
    moment = PagingMoment()
    moment.ranked([0.9])
    moment.page()
    assert all(math.isnan(_state(moment)[name]) for name in ("best", "top", "arrived"))  # type: ignore[arg-type]
    moment.ranked([])
    moment.ranked([0.2])
    assert (_state(moment)["best"], _state(moment)["arrived"]) == (0.2, 0.2)


def test_recent_events_have_the_largest_weight_and_unknown_ones_none() -> None:
    moment = PagingMoment()
    assert math.isnan(_state(moment)["recent"])  # type: ignore[arg-type]
    assert _state(moment)["network"] is None
    for effective in (1.0, math.nan, 1.0, 0.0):
        moment.feedback(_event(network=Network.WIFI, battery_saver=True), effective)
    told = _state(moment)
    assert told["recent"] == pytest.approx(0.8)
    assert (told["network"], told["battery_saver"]) == (Network.WIFI, True)
