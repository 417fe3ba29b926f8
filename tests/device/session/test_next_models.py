from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability import released
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.session import FeedSession, SessionConfig
from pocketrank.device.updates import BundleStore, Updates
from tests.device.worlds import SPLIT, Clock, make_bundle, make_page


def session(ranker: Ranker | None, clock: Clock | None = None, **keys: Any) -> FeedSession:
    return FeedSession(ranker, user_id=7, session_id="s", clock=clock or Clock(), **keys)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of the session; `Updates` logs its own reasons."""
    messages = [record.getMessage() for record in caplog.records if record.name == "pocketrank.device"]
    return [message for message in messages if message.startswith("Session ")]


def test_a_session_without_a_ranker_counts_its_pages_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    feed = session(None)
    for number in range(3):
        feed.take(make_page([2 * number, 2 * number + 1], number))
        assert feed.next() == 2 * number
    assert feed.counters.no_model == 3
    assert feed.counters.reranks == 0
    assert _warnings(caplog) == [
        "Session s shows pages in cloud order: no ranker was given; set `SessionConfig.expects_model` to False if that is "
        "intended"
    ]


def test_pages_that_are_refused_have_no_model_to_miss(caplog: pytest.LogCaptureFixture) -> None:
    feed = session(None)
    assert not feed.take(make_page([]))
    assert feed.counters.no_model == 0
    assert _warnings(caplog) == []


def test_cloud_order_on_purpose_is_no_fallback(caplog: pytest.LogCaptureFixture) -> None:
    feed = session(None, config=SessionConfig(expects_model=False))
    feed.take(make_page([1, 2]))
    assert feed.counters.no_model == 0
    assert _warnings(caplog) == []


def test_a_session_with_a_model_warns_of_nothing(ranker: Ranker, caplog: pytest.LogCaptureFixture) -> None:
    feed = session(ranker)
    for number, split in enumerate((SPLIT, None, "other")):
        feed.take(make_page([2 * number, 2 * number + 1], number, split=split))
    assert feed.counters.no_model == 0
    assert _warnings(caplog) == []


def test_a_page_that_the_ranker_has_no_form_for_is_logged_once_for_each_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for expects_model in (True, False):  # there is a model, so the page is the fallback
        config = SessionConfig(expects_model=expects_model)
        feed = session(Ranker.open(make_bundle(tmp_path, forms=("split",))), config=config)
        for number, split in enumerate((None, SPLIT, "other", None)):
            feed.take(make_page([2 * number, 2 * number + 1], number, split=split))
        assert feed.counters.no_model == 3
        assert _warnings(caplog) == [
            "Session s shows pages in cloud order: the ranker has no model for this page (vectors_absent)",
            "Session s shows pages in cloud order: the ranker has no model for this page (split_mismatch)",
        ]
        caplog.clear()


def test_a_session_whose_updates_have_no_bundle_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No bundle, then a bundle, then one that has expired: a warning for each reason, none for the bundle."""
    clock = Clock(released.NOW_MS)
    updates = Updates(BundleStore(tmp_path / "store", released.KEYS, clock=clock), device_id="d")
    feed, reasons = session(None, clock, updates=updates), [updates.current().why]

    def take(number: int) -> None:
        request = feed.request(2)
        feed.take(make_page([2 * number, 2 * number + 1], number, request_id=request.request_id))

    take(0)
    take(1)
    assert feed.counters.no_model == 2
    updates.add(released.make_bundle(tmp_path / "bundle", 1, expires_ms=clock.ms + 1000))
    take(2)
    assert feed.form == "self_contained"
    clock.ms += 1000
    reasons.append(updates.current().why)
    take(3)
    assert feed.counters.no_model == 3
    assert _warnings(caplog) == [
        f"Session s shows pages in cloud order: `updates` has no bundle to rank with ({why})" for why in reasons
    ]


def test_models_that_the_app_takes_away_are_missed(ranker: Ranker, caplog: pytest.LogCaptureFixture) -> None:
    feed = session(ranker)
    feed.take(make_page([1, 2]))
    feed.use(None)
    feed.take(make_page([3, 4], 1))
    assert feed.counters.no_model == 1
    assert "no ranker was given" in _warnings(caplog)[0]
