import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.device.codec import from_msgpack, to_block, to_msgpack
from pocketrank.device.contract import Columns, ContractError, Page, PageRequest, PersonalConfig, TaskPrior, id_code
from pocketrank.device.feedback.impression import Impression
from pocketrank.device.model.personal import PersonalLayer, labels
from pocketrank.device.offline.outbox import OutboxConfig
from pocketrank.device.offline.store import DeviceStore
from pocketrank.device.paging import FixedPaging
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes import Runtime, open_runtime
from pocketrank.device.session import Counters, FeedSession, SessionConfig
from tests.device.worlds import SPEC, SPLIT, T0, Clock, make_bundle, make_event, make_page, onnx_model, reference

VECTORS = Path(__file__).parents[2] / "vectors"
WEIGHTS = np.array([1.0, 2.0])


def session(ranker: Ranker | None, clock: Clock | None = None, **keys: Any) -> FeedSession:
    return FeedSession(ranker, user_id=7, session_id="s", clock=clock or Clock(), **keys)


def _with(page: Page, **changes: Any) -> Page:
    return msgspec.structs.replace(page, candidates=msgspec.structs.replace(page.candidates, **changes))


def _show_all(feed: FeedSession) -> list[int]:
    shown = []
    while (item := feed.next()) is not None:
        shown.append(item)
    return shown


# ------------------------------------------------------------------------------------------------------------- the order


def test_without_a_ranker_it_is_cloud_order() -> None:
    feed = session(None)
    assert feed.take(make_page([3, 1, 2]))
    feed.feedback(make_event(3))
    assert _show_all(feed) == [1, 2]
    assert feed.next() is None
    assert feed.form is None


class Recorder(Runtime):
    """Another runtime, and the inputs and outputs of its last run."""

    def __init__(self, inner: Runtime) -> None:
        self.inner, self.input_names = inner, inner.input_names
        self.list_sizes, self.events = inner.list_sizes, inner.events
        self.inputs: dict[str, NDArray[Any]] = {}
        self.outputs: list[NDArray[Any]] = []

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        self.inputs = {name: array.copy() for name, array in inputs.items()}
        self.outputs = [array.copy() for array in self.inner.run_all(inputs)]
        return self.outputs


def test_the_order_is_made_by_the_model(ranker: Ranker) -> None:
    """One page, one event with its feedback, the clock moved: against inputs made by hand and the model's arithmetic."""
    page, clock = make_page([10, 11, 12, 13]), Clock()
    recorder = Recorder(ranker.runtimes["split"]["whole"])
    feed = session(Ranker(SPEC, SPLIT, {"split": {"whole": recorder}}), clock)
    feed.take(page)
    assert feed.form == "split"
    first = feed.next()
    assert first is not None
    clock.ms = T0 + 30_000
    event = make_event(first, 0, watch_ms=9_000, like=True, network=1)
    assert feed.feedback(event)
    arrays = ranker.builder.page(page)
    assert arrays.vector is not None
    assert arrays.user_vector is not None
    at = first - 10
    rest = [row for row in range(4) if row != at]
    inputs = {
        "candidate_float": arrays.floats[None, rest],
        "candidate_category": arrays.categories[None, rest],
        "candidate_vector": arrays.vector[None, rest],
        "candidate_mask": np.ones((1, 3), np.float32),
        "event_float": arrays.floats[None, [at]],
        "event_category": arrays.categories[None, [at]],
        "event_vector": arrays.vector[None, [at]],
        "event_feedback": np.array([[[9.0, 1.0, 0.5, 1.0, 0.0]]], np.float32),
        "event_gap": np.array([[[30.0, 1.0]]], np.float32),
        "event_mask": np.ones((1, 1), np.float32),
        "context": np.array([[1.0, 22.0]], np.float32),
        "user_vector": arrays.user_vector,
    }
    best = np.argsort(-(reference(SPEC, inputs)[0] @ WEIGHTS), kind="stable")
    assert feed.remaining.tolist() == [10 + rest[i] for i in best]
    assert feed.counters.reranks == 2
    assert set(recorder.inputs) == set(inputs)
    for name, array in inputs.items():
        np.testing.assert_array_equal(recorder.inputs[name], array, err_msg=name)


def test_feedback_makes_a_new_order(ranker: Ranker) -> None:
    feed = session(ranker)
    feed.take(make_page(list(range(8)), seed=3))
    item = feed.next()
    assert item is not None
    assert len(feed.remaining) == 7
    before = feed.counters.reranks
    feed.feedback(make_event(item))
    assert len(feed.remaining) == 7
    assert feed.counters.reranks == before + 1


def test_onnx_and_litert_order_alike(ranker: Ranker) -> None:
    static = Ranker(SPEC, SPLIT, {"split": {"whole": open_runtime(VECTORS / "split.tflite", "tflite")}})
    shown: list[list[int]] = []
    for own in (ranker, static):
        feed, clock = session(own, Clock()), Clock()
        items = []
        for number in range(3):
            feed.take(make_page(list(range(100 * number, 100 * number + 12)), seed=number))
            for _ in range(7):
                item = feed.next()
                assert item is not None
                items.append(item)
                clock.ms += 8_000
                feed.feedback(make_event(item, feed.position - 1, like=item % 3 == 0))
        shown.append(items)
        assert feed.counters.model_failed == feed.counters.scores_bad == 0
    assert shown[0] == shown[1]


def test_feedback_changes_what_comes_next(ranker: Ranker) -> None:
    orders = set()
    for watch_ms in (0, 5_000, 1_000_000):
        feed = session(ranker)
        feed.take(make_page(list(range(8)), seed=3))
        feed.feedback(make_event(0, 0, watch_ms=watch_ms))
        before = feed.counters.reranks
        orders.add(tuple(feed.remaining.tolist()))
        assert feed.counters.reranks == before + 1
    assert len(orders) > 1
    assert all(sorted(order) == list(range(1, 8)) for order in orders)


def test_the_order_is_made_once_for_each_change(ranker: Ranker) -> None:
    feed = session(ranker)
    feed.take(make_page([1, 2, 3]))
    for _ in range(3):
        assert len(feed.remaining) == 3
    assert feed.next() in (1, 2, 3)
    assert feed.counters.reranks == 1


def test_a_single_candidate_needs_no_model(ranker: Ranker) -> None:
    feed = session(ranker)
    feed.take(make_page([5]))
    assert feed.next() == 5
    assert feed.counters.reranks == 0


def test_a_new_page_replaces_what_was_not_shown(ranker: Ranker) -> None:
    feed = session(ranker)
    feed.take(make_page([1, 2, 3]))
    shown = feed.next()
    feed.take(make_page([4, 5], 9))
    assert feed.page_id == "page-9"
    assert sorted(_show_all(feed)) == [4, 5]
    assert feed.feedback(make_event(shown or 0))
    assert feed.counters.events_unknown_item == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.lists(st.integers(0, 25), max_size=12), st.integers(0, 5)),
            st.tuples(st.just("next"), st.just([]), st.just(0)),
            st.tuples(st.just("feedback"), st.lists(st.integers(0, 25), min_size=1, max_size=1), st.integers(-50, 50)),
        ),
        max_size=25,
    )
)
def test_whatever_happens_nothing_is_shown_twice_or_lost(ranker: Ranker, steps: list[tuple[str, list[int], int]]) -> None:
    feed, shown, held = session(ranker), list[int](), set[int]()
    for i, (kind, items, number) in enumerate(steps):
        if kind == "take":
            new = set(items) - set(shown)
            assert feed.take(make_page(items, number)) is bool(new)
            held = new or held
        elif kind == "next":
            item = feed.next()
            assert (item is None) is (not held)
            if item is not None:
                shown.append(item)
        else:
            event = make_event(items[0], i, event_id=f"e{i}", impression_ms=T0 + 1000 * number)
            assert feed.feedback(event)
            if items[0] in held:
                shown.append(items[0])
        held -= set(shown)
        assert set(feed.remaining.tolist()) == held
        assert len(feed.remaining) == len(held)
    assert len(set(shown)) == len(shown) == feed.position
    assert feed.counters.model_failed == feed.counters.scores_bad == 0


# ----------------------------------------------------------------------------------------------------------- bad input


def _counted(feed: FeedSession) -> dict[str, int]:
    counts: dict[str, int] = {name: getattr(feed.counters, name) for name in Counters.__dataclass_fields__}
    return {name: n for name, n in counts.items() if n and name not in ("pages", "reranks", "events")}


NAN = Columns(names=("pxtr_like", "duration_ms", "age"), values=to_block(np.full((3, 3), np.nan), "f4"))
NARROW = Columns(names=("pxtr_like",), values=to_block(np.zeros((3, 2)), "f4"))
SHORT = Columns(names=("category", "author"), values=to_block(np.zeros((2, 2), int), "i4"))
ODD = Columns(names=("author", "mood"), values=to_block(np.full((3, 2), -7), "i4"))


@pytest.mark.parametrize(
    ("page", "form", "counted"),
    [
        (make_page([1, 2, 3]), "split", {}),
        (make_page([1, 2, 3], split=None), "self_contained", {"vectors_absent": 1}),
        (make_page([1, 2, 3], split="other"), "self_contained", {"split_mismatch": 1}),
        (_with(make_page([1, 2, 3]), vector=to_block(np.zeros((3, 9)), "f2")), "self_contained", {"vectors_bad": 1}),
        (_with(make_page([1, 2, 3]), vector=to_block(np.zeros((2, 4)), "f2")), "self_contained", {"vectors_bad": 1}),
        (msgspec.structs.replace(make_page([1, 2, 3]), user_vector=None), "self_contained", {"vectors_absent": 1}),
        (_with(make_page([1, 2, 3]), vector=to_block(np.full((3, 4), np.nan), "f2")), "split", {}),
        (_with(make_page([1, 2, 3]), floats=NAN), "split", {}),
        (_with(make_page([1, 2, 3]), categories=ODD), "split", {"columns_missing": 1}),
        (_with(make_page([1, 2, 3]), floats=NARROW), None, {"features_bad": 1}),
        (_with(make_page([1, 2, 3]), categories=SHORT), None, {"features_bad": 1}),
        (make_page([1, 2, 3, 2, 1]), "split", {"duplicates": 2}),
    ],
)
def test_bad_pages_fall_back_and_are_counted(ranker: Ranker, page: Page, form: str | None, counted: dict[str, int]) -> None:
    feed = session(ranker)
    assert feed.take(page)
    assert feed.form == form
    assert _counted(feed) == counted
    feed.feedback(make_event(2))
    rest = _show_all(feed)
    assert sorted(rest) == [1, 3]
    if form is None:
        assert rest == [1, 3]
        assert feed.counters.reranks == 0
    else:
        assert feed.counters.reranks == 1


@pytest.mark.parametrize(
    ("page", "counted"),
    [
        (make_page([]), {"pages_empty": 1}),
        (make_page([1]), {"pages_empty": 1, "already_shown": 1}),
        (_with(make_page([7]), item_id=to_block(np.zeros(2), "f4")), {"pages_refused": 1}),
        (
            _with(make_page([7]), item_id=msgspec.structs.replace(make_page([7]).candidates.item_id, data=b"x")),
            {"pages_refused": 1},
        ),
    ],
)
def test_pages_that_are_refused_leave_what_was_held(ranker: Ranker, page: Page, counted: dict[str, int]) -> None:
    feed = session(ranker)
    feed.take(make_page([1]))
    feed.next()
    feed.take(make_page([2, 3], 1))
    assert not feed.take(page)
    assert _counted(feed) == counted
    assert sorted(feed.remaining.tolist()) == [2, 3]
    assert feed.page_id == "page-1"


def test_without_a_model_for_the_form_it_is_cloud_order(tmp_path: Path) -> None:
    feed = session(Ranker.open(make_bundle(tmp_path, forms=("split",))))
    feed.take(make_page([3, 1, 2], split=None))
    assert feed.remaining.tolist() == [3, 1, 2]
    assert _counted(feed) == {"vectors_absent": 1, "no_model": 1}


def test_vectors_of_another_split_version_never_reach_the_split_model(ranker: Ranker, tmp_path: Path) -> None:
    """Pages that differ only in foreign vectors lead to the same order of a later page."""
    orders = []
    for seed in (1, 2):
        feed = session(ranker)
        vectors = to_block(np.random.default_rng(seed).normal(size=(2, 4)) * 100, "f2")
        feed.take(_with(make_page([1, 2], split="other"), vector=vectors))
        feed.feedback(make_event(1))
        feed.take(make_page(list(range(10, 18)), 4))
        assert feed.form == "split"
        orders.append(feed.remaining.tolist())
    assert orders[0] == orders[1]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_leave_cloud_order(poison: float, tmp_path: Path) -> None:
    onnx.save(onnx_model(SPEC, "split", poison=poison), tmp_path / "m.onnx")
    feed = session(Ranker(SPEC, SPLIT, {"split": {"whole": open_runtime(tmp_path / "m.onnx", "onnx")}}))
    feed.take(make_page([9, 8, 7, 6]))
    assert feed.feedback(make_event(8))
    assert feed.remaining.tolist() == [9, 7, 6]
    assert feed.next() == 9
    assert _counted(feed) == {"scores_bad": 1, "shown_elsewhere": 1}


def test_a_model_that_fails_leaves_cloud_order(tmp_path: Path) -> None:
    onnx.save(onnx_model(SPEC, "split"), tmp_path / "m.onnx")
    ranker = Ranker(SPEC, SPLIT, {"split": {"whole": open_runtime(tmp_path / "m.onnx", "onnx")}})
    feed = session(ranker)
    feed.take(make_page([9, 8, 7]))
    onnx.save(onnx_model(msgspec.structs.replace(SPEC, vector_width=9), "split"), tmp_path / "other.onnx")
    ranker.runtimes["split"]["whole"] = open_runtime(tmp_path / "other.onnx", "onnx")
    assert feed.next() == 9
    assert feed.counters.model_failed == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"item_id": "x"},
        {"volume": "loud"},
        {"item_id": 2**64},
        {"watch_ms": 1.5},
        {"ended": 7},
        {"event_id": None},
        {"volume": {}},
    ],
)
def test_events_that_the_contract_does_not_allow_are_dropped(ranker: Ranker, changes: dict[str, Any]) -> None:
    feed = session(ranker)
    feed.take(make_page([1, 2, 3]))
    assert not feed.feedback(make_event(1, **changes))
    assert _counted(feed) == {"events_bad": 1}
    assert feed.drain_feedback() == ()
    assert len(_show_all(feed)) == 3


def test_extreme_events_do_no_harm(ranker: Ranker) -> None:
    feed = session(ranker)
    feed.take(make_page(list(range(6))))
    most = 2**63 - 1
    for i, ms in enumerate((0, 1, 253_402_300_799_999, 1_700_000_000)):
        event = make_event(
            i, impression_ms=ms, position=most - ms, watch_ms=86_400_000, volume=float("nan"), pauses=most,
            scroll_speed=float("inf"),
        )  # fmt: skip
        assert feed.feedback(event)
    assert sorted(_show_all(feed)) == [4, 5]
    assert _counted(feed) == {"shown_elsewhere": 4}


@pytest.mark.parametrize(
    "bad",
    [
        {"event_id": ""}, {"event_id": "x" * 129}, {"experiment": ""}, {"experiment": "x" * 129}, {"impression_ms": -1},
        {"impression_ms": 2**63 - 1}, {"impression_ms": 253_402_300_800_000}, {"watch_ms": -1}, {"watch_ms": 86_400_001},
    ],
)  # fmt: skip
def test_what_the_contract_refuses_is_dropped_on_the_device(bad: dict[str, Any]) -> None:
    feed = session(None)
    assert not feed.feedback(make_event(1, **bad))
    assert feed.counters.events_bad == 1
    assert feed.request(1).feedback == ()


def test_events_out_of_order_count_like_events_in_order(ranker: Ranker) -> None:
    orders = []
    for sequence in ((0, 1, 2), (2, 0, 1)):
        feed = session(ranker, Clock(T0 + 60_000))
        feed.take(make_page(list(range(8))))
        for i in sequence:
            feed.feedback(make_event(i, i))
        orders.append(feed.remaining.tolist())
    assert orders[0] == orders[1]


def test_feedback_for_unknown_items_is_uploaded_only(ranker: Ranker) -> None:
    feed, plain = session(ranker), session(ranker)
    for own in (feed, plain):
        own.take(make_page(list(range(8))))
    assert feed.feedback(make_event(999))
    assert feed.remaining.tolist() == plain.remaining.tolist()
    assert _counted(feed) == {"events_unknown_item": 1}
    assert [e.item_id for e in feed.drain_feedback()] == [999]


def test_repeated_events_count_once(ranker: Ranker) -> None:
    feed = session(ranker)
    feed.take(make_page([1, 2, 3]))
    assert feed.feedback(make_event(1))
    assert not feed.feedback(make_event(1))
    assert not feed.feedback(make_event(2, event_id="e1"))
    assert _counted(feed) == {"events_duplicate": 2, "shown_elsewhere": 1}
    assert len(feed.drain_feedback()) == 1


# ---------------------------------------------------------------------------------------------------- asking the cloud


def test_the_reasons_to_want_a_page(ranker: Ranker) -> None:
    clock = Clock()
    feed = session(ranker, clock, paging=FixedPaging(consume=2, size=5))
    assert feed.wants_page() == (True, 5, "empty")
    feed.take(make_page([1, 2, 3, 4]))
    assert feed.wants_page() == (False, 5, "continue")
    clock.ms += 600_000
    assert feed.wants_page() == (True, 5, "stale")
    feed.take(make_page([5, 6, 7], 1))
    assert not feed.wants_page().request
    feed.next()
    feed.next()
    assert feed.wants_page() == (True, 5, "consumed")
    feed.next()
    assert feed.wants_page() == (True, 5, "empty")


def test_a_device_clock_far_from_the_clouds_does_not_make_pages_stale() -> None:
    feed = session(None, Clock(T0 + 10**10))
    feed.take(make_page([1, 2]))
    assert not feed.wants_page().request


def test_a_request_carries_what_happened(ranker: Ranker) -> None:
    clock = Clock()
    feed = session(ranker, clock)
    feed.take(make_page([1, 2, 3]))
    shown = feed.next()
    assert shown is not None
    event = make_event(shown)
    feed.feedback(event)
    clock.ms += 5
    request = feed.request(20, scene=2)
    assert request == PageRequest(
        request_id=request.request_id, user_id=7, session_id="s", now_ms=T0 + 5, size=20, scene=2,
        split_version=SPLIT, feedback=(event,), exclude=(shown,),
    )  # fmt: skip
    assert from_msgpack(to_msgpack(request), PageRequest) == request
    assert feed.request(20).feedback == ()
    feed.put_back(request.feedback)
    again = feed.request(20)
    assert again.feedback == (event,)
    start, _, number = again.request_id.partition("/")
    assert number == "3"
    assert request.request_id == f"{start}/1"
    assert session(ranker).request(1).request_id != request.request_id, "the same session id, started again"


def test_without_a_split_model_no_vectors_are_asked_for(tmp_path: Path) -> None:
    own = Ranker.open(make_bundle(tmp_path, forms=("self_contained",)))
    assert session(own).request(1).split_version is None
    assert session(None).request(1).split_version is None


def test_what_is_remembered_of_shown_items_is_bounded(ranker: Ranker) -> None:
    feed = session(ranker, config=SessionConfig(shown_max=3, outbox=OutboxConfig(waiting_max=2)))
    feed.take(make_page(list(range(6))))
    shown = _show_all(feed)
    request = feed.request(1)
    assert request.exclude == tuple(shown[-3:])
    feed.request_failed(request)
    assert feed.position == 6
    for item in shown:
        feed.feedback(make_event(item))
    assert feed.counters.events_unknown_item == 3
    assert [e.item_id for e in feed.drain_feedback()] == shown[-2:]
    assert feed.take(make_page(shown))
    assert sorted(feed.remaining.tolist()) == sorted(shown[:3])


def test_sessions_share_a_ranker_without_sharing_anything_else(ranker: Ranker) -> None:
    alone, first, second = session(ranker), session(ranker), session(ranker)
    alone.take(make_page(list(range(8))))
    first.take(make_page(list(range(8))))
    second.take(make_page(list(range(20, 26)), 5))
    for i in range(5):
        assert alone.next() == first.next()
        second.feedback(make_event(20 + i, i, like=True))
        alone.feedback(make_event(i, i))
        first.feedback(make_event(i, i))
        assert alone.remaining.tolist() == first.remaining.tolist()


def test_two_threads_swipe_and_take_pages(ranker: Ranker) -> None:
    """One takes pages while the other swipes: nothing is shown twice and nothing is lost."""
    feed = session(ranker)
    feed.take(make_page(list(range(6))))
    shown: list[int] = []

    def pages() -> None:
        for number in range(1, 40):
            feed.take(make_page(list(range(4 * number, 4 * number + 8)), number))

    taker = threading.Thread(target=pages)
    taker.start()
    while taker.is_alive() or len(feed.remaining):
        if (item := feed.next()) is not None:
            shown.append(item)
            assert feed.feedback(make_event(item, len(shown)))
    taker.join()
    assert len(set(shown)) == len(shown) == feed.position
    assert set(range(156, 164)) <= set(shown)
    assert feed.counters.model_failed == feed.counters.events_unknown_item == 0


# -------------------------------------------------------------------------------------------------------- other models


def test_other_models_take_over_with_the_next_page_and_know_what_was_watched(ranker: Ranker, tmp_path: Path) -> None:
    """A session that switches orders the next page as one that had the new models from the beginning."""
    spec = msgspec.structs.replace(SPEC, candidate_floats=SPEC.candidate_floats[::-1], events_max=4)
    other = Ranker.open(make_bundle(tmp_path, spec))
    switched, always = session(ranker), session(other)
    for feed in (switched, always):
        feed.take(make_page(list(range(8))))
        for at, item in enumerate((3, 1, 5)):
            feed.feedback(make_event(item, at, like=at == 1))
    before = switched.remaining.tolist()
    switched.use(other)
    assert switched.remaining.tolist() == before
    for feed in (switched, always):
        feed.take(make_page(list(range(10, 18)), 1))
        feed.feedback(make_event(5, 3, event_id="later"))  # of the first page
    assert switched.remaining.tolist() == always.remaining.tolist()
    assert switched.remaining.tolist() != sorted(switched.remaining.tolist())
    assert switched.counters.events_unknown_item == 0


def test_a_switch_to_cloud_order_and_back(ranker: Ranker) -> None:
    feed, plain = session(ranker), session(ranker)
    for number, models in enumerate((ranker, None, ranker)):
        feed.use(models)
        page = make_page(list(range(10 * number, 10 * number + 8)), number)
        feed.take(page)
        plain.take(page)
        assert feed.form == (None if models is None else "split")
        for own in (feed, plain):
            own.feedback(make_event(10 * number + 2, number))
    assert feed.remaining.tolist() == plain.remaining.tolist()
    assert feed.request(1).split_version == SPLIT
    feed.use(None)
    assert feed.request(1).split_version is None


# --------------------------------------------------------------------------------------------------- the user's own layer

PERSONAL = PersonalConfig(tasks={"like": TaskPrior(user=0.2, category=1.0), "long_view": TaskPrior()})
FIRST = list(range(8))


def layer(config: PersonalConfig = PERSONAL, user_id: int = 7) -> PersonalLayer:
    return PersonalLayer(SPEC.tasks, bundle="tiny/1", user_id=user_id, config=config)


@given(st.integers(0, 999), st.lists(st.booleans(), min_size=1, max_size=7))
def test_a_layer_that_learned_nothing_keeps_the_shipped_order(ranker: Ranker, seed: int, likes: list[bool]) -> None:
    plain, inert, new = session(ranker), session(ranker, personal=layer(PersonalConfig())), session(ranker, personal=layer())
    for feed in (plain, inert, new):
        feed.take(make_page(FIRST, seed))
    assert new.remaining.tolist() == plain.remaining.tolist()
    for at, like in enumerate(likes):
        item = plain.next()
        assert item is not None
        assert inert.next() == item
        for feed in (plain, inert):
            feed.feedback(make_event(item, at, like=like))
        assert inert.remaining.tolist() == plain.remaining.tolist()
    assert inert.counters == plain.counters


def _category(ranker: Ranker, page: Page) -> NDArray[np.int32]:
    return ranker.builder.page(page).categories[:, 0]


def test_a_category_that_the_user_likes_is_ranked_higher(ranker: Ranker) -> None:
    own = layer()
    for number in range(30):
        page = make_page(list(range(100 * number, 100 * number + 8)), number)
        codes, feed = _category(ranker, page), session(ranker, personal=own)
        feed.take(page)
        while (item := feed.next()) is not None:
            feed.feedback(make_event(item, like=bool(codes[item % 100] == 3), event_id=f"{item}"))
    assert own.events == 30 * 7  # the last one of a page is not ordered by the model
    page = make_page(FIRST, 1)
    codes = np.array([1, 2, 3, 4, 3, 5, 6, 3])
    columns = Columns(names=("category",), values=to_block(codes[:, None], "i4"))
    changed = _with(page, categories=columns)
    places = []
    for feed in (session(ranker), session(ranker, personal=own)):
        feed.take(changed)
        places.append([feed.remaining.tolist().index(item) for item in np.flatnonzero(codes == 3).tolist()])
    assert sum(places[1]) < sum(places[0])
    assert np.argsort(places[0]).tolist() == np.argsort(places[1]).tolist()  # among themselves as shipped


def test_a_layer_learns_from_shipped_scores_and_the_event(ranker: Ranker) -> None:
    recorder = Recorder(ranker.runtimes["split"]["whole"])
    own, expected, page = layer(), layer(), make_page(FIRST, 5)
    feed = session(Ranker(SPEC, SPLIT, {"split": {"whole": recorder}}), personal=own)
    feed.take(page)
    arrays, held, moved = ranker.builder.page(page), list(FIRST), 0.0
    for at in range(7):
        item = feed.next()
        assert item is not None
        shipped = recorder.outputs[0][0, held.index(item)]
        adjusted = own.adjust(shipped[None], arrays.categories[[item], 0])
        moved = max(moved, float(np.abs(adjusted - shipped).max()))
        held.remove(item)
        event = make_event(item, at, like=at % 2 == 0, watch_ms=9_000 * at)
        feed.feedback(event)
        duration = float(arrays.floats[item, 1]) * 1000
        expected.learn(shipped, labels(event, SPEC.tasks, duration), int(arrays.categories[item, 0]))
        assert own.state() == expected.state()
    assert own.events == 7
    assert moved > 0.01  # so the adjusted ones would have shown


def test_an_impression_teaches_once(ranker: Ranker) -> None:
    own = layer()
    feed = session(ranker, personal=own)
    feed.take(make_page(FIRST))
    item = feed.next()
    assert item is not None
    assert feed.feedback(make_event(item, 0, like=True))
    assert own.events == 1
    state = own.state()
    assert not feed.feedback(make_event(item, 0, like=True))  # the same event
    assert feed.feedback(make_event(item, 0, like=False, event_id="again"))
    assert feed.feedback(make_event(item, -9, impression_ms=0, event_id="late"))
    assert feed.feedback(make_event(999, 1, like=True))
    assert not feed.feedback(make_event(item, watch_ms=1.5, event_id="bad"))
    assert own.state() == state


def test_an_item_shown_without_next_teaches_when_the_order_was_known(ranker: Ranker) -> None:
    own = layer()
    feed = session(ranker, personal=own)
    feed.take(make_page(FIRST))
    feed.feedback(make_event(3))  # nothing was ordered yet
    assert own.events == 0
    assert feed.remaining[0] != 3
    feed.feedback(make_event(int(feed.remaining[4]), 1))
    assert own.events == 1


def test_what_was_shown_in_cloud_order_teaches_nothing(ranker: Ranker, tmp_path: Path) -> None:
    own = layer()
    alone, narrow = session(None, personal=own), session(ranker, personal=own)
    alone.take(make_page([1, 2]))
    narrow.take(_with(make_page([1, 2, 3]), floats=NARROW))
    single = session(ranker, personal=own)
    single.take(make_page([5]))
    onnx.save(onnx_model(SPEC, "split", poison=float("nan")), tmp_path / "m.onnx")
    poisoned = session(Ranker(SPEC, SPLIT, {"split": {"whole": open_runtime(tmp_path / "m.onnx", "onnx")}}), personal=own)
    poisoned.take(make_page([7, 8, 9]))
    poisoned.feedback(make_event(8))
    for feed in (alone, narrow, single, poisoned):
        item = feed.next()
        assert item is not None
        assert feed.feedback(make_event(item, like=True))
    assert poisoned.counters.scores_bad == 1
    assert own.events == 0
    assert own.drift == 0


def test_candidates_beyond_the_models_list_teach_nothing(ranker: Ranker) -> None:
    own = layer()
    feed = session(ranker, personal=own)
    feed.take(make_page(list(range(12))))
    beyond = feed.remaining.tolist()[SPEC.candidates_max :]
    assert beyond == [8, 9, 10, 11]
    feed.feedback(make_event(10))
    assert own.events == 0
    assert len(feed.remaining) == 11


def test_features_that_a_layer_needs_may_be_missing(tmp_path: Path) -> None:
    """Without category and duration there is the user's own weight, and views are not known."""
    spec = msgspec.structs.replace(SPEC, candidate_categories=(), candidate_floats=SPEC.candidate_floats[:1])
    onnx.save(onnx_model(spec, "split"), tmp_path / "m.onnx")
    model = open_runtime(tmp_path / "m.onnx", "onnx")
    own = layer()
    feed = session(Ranker(spec, SPLIT, {"split": {"whole": model}}), personal=own)
    feed.take(make_page(FIRST))
    item = feed.next()
    assert item is not None
    feed.feedback(make_event(item, like=True))
    assert own.events == 1
    shipped = np.array([[0.5, 0.5]], np.float32)
    answer = own.adjust(shipped)[0]
    assert answer[0] == 0.5
    assert answer[1] > 0.5
    assert sorted(feed.remaining.tolist()) == [i for i in FIRST if i != item]


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"user_id": 2**63}, "$.user_id"),
        ({"user_id": 7.5}, "$.user_id"),
        ({"session_id": 7}, "$.session_id"),
        ({"session_id": "half a pair \ud83d"}, "$"),
        ({"session_id": "s" * 1025}, "$.session_id"),
        ({"config": SessionConfig(experiment="")}, "$.experiment"),
        ({"config": SessionConfig(experiment="e" * 129)}, "$.experiment"),
    ],
)
def test_what_no_page_request_can_hold_is_refused_at_the_start(keys: dict[str, Any], where: str) -> None:
    with pytest.raises(ContractError) as caught:
        FeedSession(None, **({"user_id": 7, "session_id": "s"} | keys))
    assert caught.value.path == where


def test_a_session_sees_the_feedback_and_the_shown_items_of_its_user_only(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "device.db") as store:
        sessions = {user: FeedSession(None, user_id=user, session_id="s", store=store) for user in (7, 8, 70)}
        for user, feed in sessions.items():
            feed.take(make_page([user, 100 + user]))
            assert feed.next() == user
            assert feed.feedback(make_event(user, event_id="the same", user_id=user))
    with DeviceStore(tmp_path / "device.db") as store:
        for user in (8, 70, 7):
            feed = FeedSession(None, user_id=user, session_id="s", store=store)
            request = feed.request(5)
            assert (request.exclude, [event.user_id for event in request.feedback]) == ((user,), [user])
            feed.take(make_page([200], request_id=request.request_id))
            assert feed.drain_feedback() == ()
            assert feed.restore()


def test_feedback_of_another_user_waits_for_its_user_and_teaches_nothing(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "device.db") as store:
        feed = FeedSession(None, user_id=8, session_id="s", store=store)
        feed.take(make_page([1, 2, 3]))
        assert feed.feedback(make_event(2, user_id=7))
        assert feed.remaining.tolist() == [1, 2, 3]
        assert feed.counters.events_unknown_item == 1
        assert feed.drain_feedback() == ()
        earlier = FeedSession(None, user_id=7, session_id="s", store=store)
        assert [event.item_id for event in earlier.drain_feedback()] == [2]


def test_a_layer_of_another_user_or_model_is_refused(ranker: Ranker) -> None:
    with pytest.raises(ValueError, match="expected the personal layer of user 7, got that of 8"):
        session(ranker, personal=layer(user_id=8))
    other = PersonalLayer(("like", "long_view"), bundle="tiny/1", user_id=7)
    with pytest.raises(ValueError, match=r"expected a personal layer over \('long_view', 'like'\), got one over"):
        session(ranker, personal=other)


# --------------------------------------------------------------------------------------------------------------- own ids


def test_a_session_knows_a_teams_own_ids(tmp_path: Path) -> None:
    keys = {item: f"video-{item}" for item in (3, 1, 2)}
    with DeviceStore(tmp_path / "store.db") as store:
        feed = FeedSession(
            None, user_id="user-7", session_id="s", clock=Clock(), store=store, config=SessionConfig(own_ids=True)
        )
        assert feed.user_id == id_code("user-7")
        asked = feed.request(3)
        assert (asked.user_id, asked.own_ids) == (id_code("user-7"), True)
        assert feed.take(_with(make_page(list(keys), request_id=asked.request_id), item_key=tuple(keys.values())))
        first = feed.next()
        assert first == 3
        assert [feed.own_id(item) for item in (3, 1, 9)] == ["video-3", "video-1", None]
        shown = Impression(3, position=0, user_id="user-7", session_id="s", clock=Clock())
        assert feed.feedback(shown.finish())
        assert feed.take(make_page([5, 6], request_id=feed.request(2).request_id))
        assert [feed.own_id(item) for item in (3, 1, 5)] == ["video-3", None, None]
        assert store.shown_items("user-7") == store.shown_items(id_code("user-7")) == [3]
        assert store.shown_items("user-8") == []
    layer = PersonalLayer(("like",), bundle="b", user_id="user-7")
    assert PersonalLayer.restore(layer.state(), ("like",), bundle="b", user_id=id_code("user-7")).user_id == feed.user_id


def test_own_ids_cost_nothing_where_nobody_asks_for_them() -> None:
    assert b"own_ids" not in to_msgpack(session(None).request(3))


def test_a_page_with_too_few_own_ids_has_none() -> None:
    feed = session(None)
    assert feed.take(_with(make_page([3, 1]), item_key=("video-3",)))
    assert feed.own_id(3) is None


@pytest.mark.parametrize("user_id", ["", "x" * 257, "\ud800"])
def test_texts_that_are_no_user_are_refused(user_id: str) -> None:
    with pytest.raises(ContractError, match=r"at `\$.user_id`"):
        FeedSession(None, user_id=user_id, session_id="s")
