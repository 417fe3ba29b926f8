from collections.abc import Sequence

import pytest

from pocketrank.device.contract import FeedbackBatch, FeedbackEvent, PageRequest
from pocketrank.pages import FeedbackNotKeptError, receive_batch, receive_with
from tests.device.worlds import make_event

GOOD = (make_event(1), make_event(2), make_event(3))
BAD = make_event(4, watch_ms=-1)


class Store:
    """Keeps events once."""

    def __init__(self) -> None:
        self.events: dict[tuple[int, str], FeedbackEvent] = {}

    def __call__(self, events: Sequence[FeedbackEvent]) -> int:
        before = len(self.events)
        self.events |= {(event.user_id, event.event_id): event for event in events}
        return len(self.events) - before


def fail(events: Sequence[FeedbackEvent]) -> int:
    raise OSError("no space left on /secret/path")


def request(*events: FeedbackEvent) -> PageRequest:
    return PageRequest(request_id="r", user_id=7, session_id="s", now_ms=1, size=3, feedback=events)


def test_a_receipt_settles_every_event_of_its_batch() -> None:
    store = Store()
    first = FeedbackBatch(events=(GOOD[0], BAD, GOOD[1]))
    receipt = receive_batch(first, store)
    assert (receipt.accepted, receipt.duplicates) == (2, 0)
    ((index, reason),) = [(event.index, event.reason) for event in receipt.refused]
    assert index == 1
    assert "watch_ms" in reason
    again = receive_batch(FeedbackBatch(events=GOOD), store)
    assert (again.accepted, again.duplicates, again.refused) == (1, 2, ())
    assert receipt.settles(first.events)
    assert again.settles(GOOD)
    assert list(store.events.values()) == list(GOOD)


def test_nothing_is_kept_of_nothing() -> None:
    assert receive_batch(FeedbackBatch(events=()), fail).settles(())
    assert receive_batch(FeedbackBatch(events=(BAD,)), fail).settles((BAD,))
    assert receive_with(request(), fail) == ()


def test_feedback_of_a_request_is_kept() -> None:
    store = Store()
    assert receive_with(request(GOOD[0], BAD), store) == ()
    assert list(store.events.values()) == [GOOD[0]]


@pytest.mark.parametrize("keep", [fail, lambda events: len(events) + 1, lambda events: -1, lambda events: None])
def test_a_store_that_fails_is_said_without_a_detail_of_it(keep: object, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FeedbackNotKeptError) as failed:
        receive_batch(FeedbackBatch(events=GOOD), keep)  # type: ignore[arg-type]
    assert "secret" not in str(failed.value)
    assert failed.value.__cause__ is not None
    assert receive_with(request(*GOOD), keep) == ("no_feedback",)  # type: ignore[arg-type]
    assert [record.message for record in caplog.records] == ["Feedback could not be kept"] * 2
