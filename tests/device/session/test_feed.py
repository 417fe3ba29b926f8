from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from msgspec.structs import replace

from pocketrank.device.codec import to_block
from pocketrank.device.contract import Columns, Form, Page
from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.model.personal import PersonalLayer
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.offline.store import DeviceStore
from pocketrank.device.paging import PageDecision, Paging, PagingState
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.ranking.tiers import Tier
from pocketrank.device.ranking.watchdog import WatchdogConfig
from pocketrank.device.reports.telemetry import TelemetryConfig
from pocketrank.device.reports.trace import Tracer, read_trace
from pocketrank.device.runtimes import open_runtime
from pocketrank.device.session import FeedSession, SessionConfig
from tests.device.worlds import SPEC, SPLIT, Clock, make_event, make_page, onnx_model


def session(ranker: Ranker | None, clock: Clock | None = None, **keys: Any) -> FeedSession:
    return FeedSession(ranker, user_id=7, session_id="s", clock=clock or Clock(), **keys)


def swipe(feed: FeedSession, **changes: Any) -> int:
    item = feed.next()
    assert item is not None
    assert feed.feedback(make_event(item, feed.position - 1, **changes))
    return item


def unreadable_features(items: list[int]) -> Page:
    """A page that is shown in cloud order."""
    page = make_page(items)
    narrow = Columns(names=("pxtr_like",), values=to_block(np.zeros((len(items), 2)), "f4"))
    return replace(page, candidates=replace(page.candidates, floats=narrow))


# ------------------------------------------------------------------------------------------------------------- the page


def test_a_closed_session_holds_nothing(ranker: Ranker) -> None:
    feed = session(ranker)
    feed.take(make_page([1, 2, 3]))
    with feed:
        assert swipe(feed) in (1, 2, 3)
    assert (feed.page_id, feed.form, feed.next(), len(feed.remaining)) == (None, None, None, 0)
    assert len(feed.drain_feedback()) == 1


class Interrupted(Ranker):
    """A ranker that runs `meanwhile` while it prepares a page."""

    meanwhile: Callable[[], object] | None = None

    def prepare(self, form: Form, held: Remaining) -> None:
        """Prepare the page as a `Ranker` does."""
        if self.meanwhile is not None:
            self.meanwhile()
        super().prepare(form, held)


def test_an_item_that_is_shown_while_a_page_is_read_is_not_shown_from_it_again(ranker: Ranker) -> None:
    own = Interrupted(SPEC, SPLIT, ranker.runtimes)
    feed, shown = session(own), list[int | None]()
    feed.take(make_page([1, 2, 3]))
    own.meanwhile = lambda: shown.append(feed.next())
    assert feed.take(make_page([1, 2, 3, 4], 1))
    assert len(shown) == 1
    assert sorted([*feed.remaining.tolist(), *shown]) == [1, 2, 3, 4]


def test_a_page_that_is_refused_is_not_stored(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "device.db") as store:
        feed = session(None, store=store)
        feed.take(make_page([1, 2]))
        swipe(feed)
        assert not feed.take(make_page([1], 1))
        assert [kept.page.page_id for kept in store.pages(7, Clock().ms)] == ["page-0"]


# ------------------------------------------------------------------------------------------------------ what paging sees


class Watching(Paging):
    """A policy that never asks, and keeps the states that it was asked about."""

    uses_values: ClassVar[bool] = True

    def __init__(self) -> None:
        self.states: list[PagingState] = []

    def __call__(self, state: PagingState) -> PageDecision:
        """Never ask."""
        self.states.append(state)
        return PageDecision(False, 0, "continue")


def test_paging_sees_the_values_of_what_would_be_shown_next(ranker: Ranker) -> None:
    paging = Watching()
    feed = session(ranker, paging=paging)
    feed.wants_page()
    feed.take(make_page(list(range(8))))
    feed.wants_page()
    swipe(feed)
    feed.wants_page()
    assert feed.counters.reranks == 2
    feed.take(unreadable_features([10, 11, 12]))
    feed.wants_page()
    empty, first, second, unknown = paging.states
    assert empty == PagingState(0, 0, 0, 0, 1.0)
    assert first.best >= first.top == first.arrived > 0
    assert (first.remaining, first.shown, first.position) == (8, 0, 0)
    assert (second.remaining, second.shown, second.position, second.arrived) == (7, 1, 1, first.arrived)
    assert second.top != first.top
    assert (unknown.remaining, unknown.shown, unknown.position) == (3, 0, 1)
    assert np.isnan([unknown.best, unknown.top, unknown.arrived]).all()


def test_a_page_is_as_old_as_a_clock_was_put_back_or_ahead(ranker: Ranker) -> None:
    clock, paging = Clock(), Watching()
    feed = session(ranker, clock, paging=paging)
    feed.take(make_page([1, 2]))
    for ms in (-5_000, 2_000, 8_000):
        clock.ms += ms
        feed.wants_page()
    # Beside a clock that is not the system's only the steps ahead are known to have passed.
    assert [state.age_ms for state in paging.states] == [5_000, 5_000, 10_000]


# ------------------------------------------------------------------------------------------------------------- feedback


def test_feedback_older_than_the_models_memory_is_late_and_changes_no_order(ranker: Ranker) -> None:
    feed, plain = session(ranker), session(ranker)
    for own in (feed, plain):
        own.take(make_page(list(range(14))))
        for at in range(SPEC.events_max):
            own.feedback(make_event(at, at + 1))
        own.next()
    assert feed.feedback(make_event(0, 0, event_id="late", impression_ms=0))
    assert feed.counters.events_late == 1
    assert feed.remaining.tolist() == plain.remaining.tolist()


# --------------------------------------------------------------------------------------------------------- other models


def test_what_was_shown_by_other_models_does_not_teach_a_layer(ranker: Ranker, tmp_path: Path) -> None:
    before, own = (PersonalLayer(SPEC.tasks, bundle="tiny/1", user_id=7) for _ in range(2))
    feed = session(ranker, personal=before)
    feed.take(make_page(list(range(8))))
    shown = feed.next()
    assert shown is not None
    feed.use(ranker, own)
    feed.take(make_page(list(range(10, 18)), 1))
    feed.feedback(make_event(shown, 0, like=True))
    assert own.events == 0
    swipe(feed)
    assert own.events == 1


def test_a_watchdog_trusts_other_models_and_counts_on(ranker: Ranker) -> None:
    """No run meets this budget, so that models rest after one run; others are tried at once."""
    config = SessionConfig(
        watchdog=WatchdogConfig(budget_ms=1e-9, trust_after=0, overruns_max=1, rest=256), telemetry=TelemetryConfig()
    )
    feed = session(ranker, config=config)
    feed.take(make_page(list(range(8))))
    for _ in range(3):
        swipe(feed)
    first = feed.counters.reranks
    feed.use(Ranker(SPEC, SPLIT, ranker.runtimes))
    feed.take(make_page(list(range(10, 18)), 1))
    swipe(feed)
    assert feed.counters.reranks == first + 1
    reports = [report for report in (feed.request(1).telemetry for _ in range(2)) if report is not None]
    assert sum(report.counters.get("watchdog_overran", 0) for report in reports) == 2


def test_what_the_app_decides_outlives_the_models(ranker: Ranker) -> None:
    """The app's paging and privacy stay, where those of a bundle would change with it."""
    paging, policy = Watching(), PrivacyPolicy().withhold("like")
    feed = session(None, paging=paging, config=SessionConfig(privacy=policy))
    feed.use(ranker)
    feed.take(make_page([1, 2, 3]))
    swipe(feed, like=True)
    feed.wants_page()
    assert len(paging.states) == 1
    (event,) = feed.drain_feedback()
    assert not event.like


# ---------------------------------------------------------------------------------------------------------------- trace


def traced(path: Path, ranker: Ranker | None, page: Page, **keys: Any) -> list[tuple[str | None, str | None]]:
    """Show three items, and return the form and the fallback of each decision."""
    with Tracer(path) as tracer:
        feed = session(ranker, tracer=tracer, **keys)
        feed.take(page)
        for _ in range(3):
            swipe(feed)
    return [(decision.form, decision.fallback) for decision in read_trace(path)]


def test_a_trace_says_why_a_model_did_not_order(ranker: Ranker, tmp_path: Path) -> None:
    items = list(range(5))
    onnx.save(onnx_model(SPEC, "split", poison=float("nan")), tmp_path / "nan.onnx")
    poisoned = Ranker(SPEC, SPLIT, {"split": {"whole": open_runtime(tmp_path / "nan.onnx", "onnx")}})
    saving = Tier(name="greedy", every=2)
    cases: list[tuple[Ranker | None, Page, dict[str, Any], list[tuple[str | None, str | None]]]] = [
        (ranker, make_page(items), {}, [("split", None)] * 3),
        (ranker, make_page(items, split="other"), {}, [("self_contained", "split_mismatch")] * 3),
        (ranker, unreadable_features(items), {}, [(None, "features_bad")] * 3),
        (None, make_page(items), {}, [(None, "no_model")] * 3),
        (None, make_page(items), {"config": SessionConfig(expects_model=False)}, [(None, None)] * 3),
        (poisoned, make_page(items), {}, [("split", None), ("split", "no_number"), ("split", "no_number")]),
        (
            ranker, make_page(items), {"config": SessionConfig(tier=saving)},
            [("split", None), ("split", "last"), ("split", None)],
        ),
    ]  # fmt: skip
    for number, (own, page, keys, expected) in enumerate(cases):
        assert traced(tmp_path / f"{number}.trace", own, page, **keys) == expected


def test_a_trace_has_the_page_the_scores_and_the_layer_of_a_choice(ranker: Ranker, tmp_path: Path) -> None:
    own = PersonalLayer(SPEC.tasks, bundle="tiny/1", user_id=7)
    traced(tmp_path / "personal.trace", ranker, make_page(list(range(5)), 3), personal=own)
    first, *_ = read_trace(tmp_path / "personal.trace")
    assert (first.page_id, first.personal) == ("page-3", True)
    assert first.scores is not None
    assert first.scores.shape == (5, len(SPEC.tasks))
    assert first.shown == first.held[first.order[0]]
    assert first.spent_ms > 0
    assert first.event_items.tolist() == []
