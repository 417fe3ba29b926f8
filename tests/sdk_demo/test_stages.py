"""A session that does each part of the model's work once orders as one that does all of it at every swipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.device import FeedSession, Ranker
from pocketrank.device.codec import to_block
from pocketrank.device.contract import (
    Candidates,
    Columns,
    FeedbackEvent,
    Form,
    Page,
    PersonalConfig,
    SearchSpec,
    Stage,
    TaskPrior,
)
from pocketrank.device.model.personal import PersonalLayer
from pocketrank.device.model.search import Reward, search
from pocketrank.device.runtimes import STAGES, RuntimeLoadError, RuntimeRunError
from tests.export.small_run import SPEC, random_upper
from tests.torch_stages import TorchStage

FULL = UpperConfig(
    width=16,
    category_width=4,
    bins=4,
    cross_width=4,
    heads=2,
    head_width=8,
    experts=2,
    expert_width=8,
    towers=(8,),
    chosen_max=3,
)
MODELS = {form: random_upper(split=form == "split", config=FULL) for form in get_args(Form)}
NAMES = tuple(f.name for f in SPEC.candidate_floats)
T0 = 1_700_000_000_000


def ranker(*stages: Stage, static: bool = False, search: SearchSpec | None = None) -> Ranker:
    def runtime(form: Form, stage: Stage) -> TorchStage:
        if not static:
            return TorchStage(MODELS[form], form, stage)
        sizes = (1, SPEC.events_max) if stage == "event" else SPEC.list_sizes
        return TorchStage(MODELS[form], form, stage, sizes, None if stage in ("event", "page", "choose") else SPEC.events_max)

    return Ranker(SPEC, "v", {form: {stage: runtime(form, stage) for stage in stages} for form in get_args(Form)}, search)


def session(ranker: Ranker, now: list[int], personal: PersonalLayer | None = None) -> FeedSession:
    return FeedSession(ranker, user_id=1, session_id="s", clock=lambda: now[0], personal=personal)


def page(items: list[int], seed: int, split: bool) -> Page:
    rng, n = np.random.default_rng(seed), len(items)
    floats = np.stack([rng.random(n), rng.random(n) / 10, rng.integers(3_000, 90_000, n)], 1)
    return Page(
        page_id=f"p{seed}",
        request_id="r",
        created_ms=T0,
        ttl_ms=10**9,
        candidates=Candidates(
            item_id=to_block(np.array(items, np.int64), "i8"),
            floats=Columns(names=NAMES, values=to_block(floats, "f4")),
            categories=Columns(names=("category",), values=to_block(rng.integers(0, 11, (n, 1)), "i4")),
            vector=to_block(rng.normal(size=(n, SPEC.vector_width)), "f2") if split else None,
        ),
        user_vector=to_block(rng.normal(size=SPEC.vector_width), "f2") if split else None,
        split_version="v" if split else None,
    )


def event(item: int, number: int, ms: int, watch_ms: int, like: bool) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=f"{item}/{number}", user_id=1, session_id="s", item_id=item, position=number, impression_ms=ms,
        watch_ms=watch_ms, like=like, volume_change=0.5 if like else None, buffering_ms=number * 100,
    )  # fmt: skip


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("page"), st.integers(1, 20), st.booleans()),
        st.tuples(st.just("watch"), st.integers(0, 60_000), st.booleans()),
        st.tuples(st.just("late"), st.integers(1, 90_000), st.booleans()),  # an event of an item that was shown before
        st.tuples(st.just("wait"), st.integers(0, 10**6), st.just(False)),
    ),
    min_size=4,
    max_size=30,
)


@pytest.mark.parametrize("static", [False, True], ids=["free", "static"])
@given(actions=ACTIONS)
@settings(max_examples=60, deadline=None)
def test_the_incremental_order_is_that_of_a_full_recompute(static: bool, actions: list[tuple[str, int, bool]]) -> None:
    now, shown, items = [T0], list[int](), iter(range(10_000))
    whole, staged = session(ranker("whole"), now), session(ranker(*STAGES, static=static), now)
    feeds = whole, staged
    for feed in feeds:
        feed.take(page([10_001, 10_002], 1, split=True))
    for number, (kind, size, flag) in enumerate(actions):
        if kind == "page":
            fresh = [next(items) for _ in range(size)]
            assert [feed.take(page(fresh, number, flag)) for feed in feeds] == [True, True]
        elif kind == "watch" and len(whole.remaining):
            one, two = whole.next(), staged.next()
            assert one == two
            assert one is not None
            shown.append(one)
            now[0] += size
            for feed in feeds:
                feed.feedback(event(one, number, now[0] - size, size, flag))
        elif kind == "late" and shown:
            for feed in feeds:
                feed.feedback(event(shown[0], number, now[0] - size, size, flag))
        elif kind == "wait":
            now[0] += size
        np.testing.assert_array_equal(whole.remaining, staged.remaining)
        assert whole.form == staged.form
    assert whole.counters == staged.counters
    assert whole.counters.model_failed == 0


def test_an_event_is_encoded_once_and_a_page_once() -> None:
    shared, now = ranker(*STAGES), [T0]
    feed = session(shared, now)
    runs = {stage: shared.runtimes["split"][stage] for stage in STAGES}
    before = {stage: runtime.runs for stage, runtime in runs.items()}  # type: ignore[attr-defined]
    feed.take(page(list(range(12)), 1, split=True))
    for number in range(8):
        item = feed.next()
        assert item is not None
        feed.feedback(event(item, number, now[0], 5_000, False))
        now[0] += 6_000
    after = {stage: runtime.runs - before[stage] for stage, runtime in runs.items()}  # type: ignore[attr-defined]
    assert after == {"page": 1, "event": 7, "watch": 8}  # what followed the last event was not ordered yet


@pytest.mark.parametrize("static", [False, True], ids=["free", "static"])
@pytest.mark.parametrize("candidates", [1, 2, 5, 12])
def test_a_search_begins_with_its_best_list(static: bool, candidates: int) -> None:
    """Held to a search by hand: every list of two, scored by the model."""
    spec = SearchSpec(beam=200, list_size=2, steps_max=2, stability=1.0)
    now = [T0]
    feed = session(ranker(*STAGES, "choose", static=static, search=spec), now)
    feed.take(page(list(range(candidates)), 3, split=True))
    order = feed.remaining.tolist()
    assert sorted(order) == list(range(candidates))
    greedy = session(ranker(*STAGES, static=static), now)
    greedy.take(page(list(range(candidates)), 3, split=True))
    if candidates == 1:
        return
    lists = [(a, b) for a in range(candidates) for b in range(candidates) if a != b]
    best = max(lists, key=lambda pair: reward(pair, page(list(range(candidates)), 3, split=True), now[0]))
    assert tuple(order[:2]) == best
    rest = [item for item in greedy.remaining.tolist() if item not in best]
    assert order[2:] == rest


def scores(page: Page, now_ms: int) -> tuple[np.ndarray, Callable[[int], np.ndarray]]:
    """The split model's probabilities [n, K] of being the first item, and of being the next one behind a place."""
    made = ranker("whole").builder.page(page)
    assert made.vector is not None
    assert made.user_vector is not None
    model = MODELS["split"]
    with torch.no_grad():
        user = torch.from_numpy(made.user_vector)
        states = model.encode_candidates(
            torch.from_numpy(made.floats)[None],
            torch.from_numpy(made.categories)[None],
            torch.from_numpy(made.vector)[None],
            user,
        )
        events = model.encode_events(
            torch.zeros(1, 1, len(NAMES)), torch.zeros(1, 1, 1, dtype=torch.int32),
            torch.zeros(1, 1, len(SPEC.feedback_floats)), torch.zeros(1, 1, SPEC.vector_width),
        )  # fmt: skip
        context = torch.tensor([[0.0, now_ms // 3_600_000 % 24]])
        ready = model.watch(states, events, torch.zeros(1, 1, 2), torch.zeros(1, 1), context, user)
        first = torch.sigmoid(model.choose(ready, states))[0].numpy()

    def behind(place: int) -> np.ndarray:
        with torch.no_grad():
            return torch.sigmoid(model.choose(ready, states, states[:, [place]], torch.ones(1, 1)))[0].numpy()

    return first, behind


def reward(pair: tuple[int, int], page: Page, now_ms: int) -> float:
    first, behind = scores(page, now_ms)
    weights = np.array([SPEC.task_weights[task] for task in SPEC.tasks])
    return float((first[pair[0]] + behind(pair[0])[pair[1]]) @ weights)


SEARCH = msgspec.structs.replace(
    SPEC, survival_task="effective_view", search=SearchSpec(beam=3, list_size=2, steps_max=3, stability=1.0)
)


class SearchStage(TorchStage):
    """The list search as one graph would answer it."""

    def _search(self, candidate_mask: torch.Tensor, page_state: torch.Tensor, **moment: torch.Tensor) -> list[torch.Tensor]:
        first, ready = self._watch(page_state, **moment)

        def step(lists: np.ndarray) -> np.ndarray:
            if not lists.shape[1]:
                return first.numpy()
            chosen = torch.from_numpy(lists)
            return self._choose(ready, page_state, chosen, torch.ones(chosen.shape))[0].numpy()

        weights = [SEARCH.task_weights[task] for task in SEARCH.tasks]
        found = search(step, int(candidate_mask.sum()), Reward(weights, 0), SEARCH.search)
        assert found is not None
        return [torch.from_numpy(found.order)[None], first]


def searching(*stages: Stage) -> Ranker:
    kinds = {stage: SearchStage if stage == "search" else TorchStage for stage in stages}
    return Ranker(SEARCH, "v", {"split": {stage: kind(MODELS["split"], "split", stage) for stage, kind in kinds.items()}})


def layer(*tasks: str, user: float = 0.5, category: float = 1.0) -> PersonalLayer:
    config = PersonalConfig(tasks={task: TaskPrior(user=user, category=category) for task in tasks})
    return PersonalLayer(SPEC.tasks, bundle="feed/1", user_id=1, config=config)


HOST: tuple[Stage, ...] = (*STAGES, "choose")


@given(seed=st.integers(0, 10**6), liked=st.lists(st.booleans(), max_size=6))
@settings(max_examples=10, deadline=None)
def test_a_layer_that_learned_nothing_leaves_a_search_as_it_was(seed: int, liked: list[bool]) -> None:
    """Bit for bit on the host; a layer keeps a search out of the graph."""
    now, shared = [T0], {stages: searching(*stages) for stages in (HOST, (*HOST, "search"), (*STAGES, "search"), STAGES)}
    plain = {stages: session(ranker, now) for stages, ranker in shared.items()}
    inert = {stages: session(ranker, now, layer()) for stages, ranker in shared.items()}
    graph = shared[*HOST, "search"].runtimes["split"]["search"]
    for number, like in enumerate([*liked, False]):
        fresh = list(range(100 * number, 100 * number + 12))
        orders = {}
        for kind, feeds in (("plain", plain), ("inert", inert)):
            runs = graph.runs  # type: ignore[attr-defined]
            for stages, feed in feeds.items():
                feed.take(page(fresh, seed + number, split=True))
                orders[kind, stages] = feed.remaining.tolist()
            assert graph.runs - runs == (kind == "plain")  # type: ignore[attr-defined]
        assert orders["inert", HOST] == orders["inert", (*HOST, "search")] == orders["plain", HOST]
        assert orders["inert", STAGES] == orders["inert", (*STAGES, "search")] == orders["plain", STAGES]
        for feeds in (plain, inert):
            for feed in feeds.values():
                feed.feedback(event(fresh[0], number, now[0], 5_000, like))
        now[0] += 6_000
    assert all(feed.counters.model_failed + feed.counters.scores_bad == 0 for feed in (*plain.values(), *inert.values()))


def test_a_search_goes_by_the_users_own_probabilities() -> None:
    """Against a search by hand over all lists of two, both steps adjusted."""
    now, own = [T0], layer("like")
    category = ranker("whole").builder.page(page([*range(12)], 1, split=True)).categories[:, 0]
    for _ in range(40):
        for code in range(1, 11):
            own.learn(np.array([0.5, 0.5], np.float32), np.array([0, code % 2], np.float32), code)
    whole = SearchSpec(beam=200, list_size=2, steps_max=2, stability=1.0)
    feed, plain = (session(ranker(*HOST, search=whole), now, given) for given in (own, None))
    for one in (feed, plain):
        one.take(page([*range(12)], 1, split=True))
    weights = np.array([SPEC.task_weights[task] for task in SPEC.tasks])
    first, behind = scores(page([*range(12)], 1, split=True), now[0])

    def worth(a: int, b: int) -> float:
        one = own.adjust(first[[a]], category[[a]])[0]
        two = own.adjust(behind(a)[[b]], category[[b]])[0]
        return float((one + two) @ weights)

    best = max(((a, b) for a in range(12) for b in range(12) if a != b), key=lambda pair: worth(*pair))
    assert tuple(feed.remaining[:2].tolist()) == best
    assert tuple(plain.remaining[:2].tolist()) != best


def test_a_search_without_its_stage_is_refused() -> None:
    with pytest.raises(RuntimeLoadError, match="the stage `choose`"):
        ranker(*STAGES, search=SearchSpec())
    with pytest.raises(RuntimeLoadError, match="the whole model or page, event, watch"):
        ranker("page", "watch")


def test_a_page_that_the_model_fails_on_is_shown_in_cloud_order() -> None:
    class Failing(TorchStage):
        def run_all(self, inputs):  # type: ignore[no-untyped-def]
            if self.runs > 1:
                raise RuntimeRunError("page", "a run", "none")
            return super().run_all(inputs)

    stages = {stage: TorchStage(MODELS["split"], "split", stage) for stage in STAGES}
    stages["page"] = Failing(MODELS["split"], "split", "page")
    feed = session(Ranker(msgspec.structs.replace(SPEC), "v", {"split": stages}), [T0])
    assert feed.take(page([1, 2, 3], 0, split=True))
    assert feed.take(page([4, 5, 6], 1, split=True))
    assert feed.remaining.tolist() == [4, 5, 6]
    assert feed.counters.model_failed == 1


@pytest.mark.parametrize("search", [None, SearchSpec(beam=3, list_size=2, steps_max=4)], ids=["greedy", "beam"])
@pytest.mark.parametrize("static", [False, True], ids=["free", "static"])
@given(
    pxtr=st.sampled_from([0.0, 1.0, 0.5, -3.0, 7.0, float("nan"), float("inf")]),
    category=st.sampled_from([0, 3, -1, 11, 2**31 - 1]),
    count=st.integers(1, 40),
    events=st.integers(0, 25),
    ms=st.sampled_from([0, -(2**60), 2**60]),
    position=st.sampled_from([0, -1, 2**40]),
)
@settings(max_examples=25, deadline=None)
def test_absurd_input_still_gets_a_whole_and_finite_order(
    static: bool, search: SearchSpec | None, pxtr: float, category: int, count: int, events: int, ms: int, position: int
) -> None:
    stages: tuple[Stage, ...] = STAGES if search is None else (*STAGES, "choose")
    feed = session(ranker(*stages, static=static, search=search), [T0])
    start = page(list(range(100, 100 + count)), 1, split=True)
    columns = start.candidates
    floats = np.full((count, len(NAMES)), pxtr)
    codes = np.full((count, 1), category)
    changed = msgspec.structs.replace(
        columns,
        floats=Columns(names=NAMES, values=to_block(floats, "f4")),
        categories=Columns(names=("category",), values=to_block(codes, "i4")),
    )
    assert feed.take(page(list(range(50)), 0, split=True))
    for number in range(events):  # more than the model remembers
        item = feed.next()
        assert item is not None
        feed.feedback(msgspec.structs.replace(event(item, number, T0, 2**40, True), position=position, impression_ms=ms))
    assert feed.take(msgspec.structs.replace(start, candidates=changed))
    assert sorted(feed.remaining.tolist()) == list(range(100, 100 + count))
    assert feed.counters.model_failed + feed.counters.scores_bad == 0
    # nothing tells the candidates within the model's list but their vectors; those beyond it keep cloud order
    beyond = [item for item in feed.remaining.tolist() if item >= 100 + SPEC.candidates_max]
    assert beyond == sorted(beyond)
