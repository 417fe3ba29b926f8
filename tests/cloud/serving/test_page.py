from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.ranking.ranker import OnnxRanker
from cloud.retrieval.exact import ExactIndex
from cloud.retrieval.retriever import Retriever, RetrieverConfig
from cloud.serving.intake import FeedbackIntake
from cloud.serving.page import PageConfig, PageMaker
from cloud.serving.state import UserStates
from cloud.streams.sqlite import SqliteFeedbackLog
from device.codec import check_page, read_page
from device.contract import ContractError, Page
from tests.cloud.events import event
from tests.cloud.serving.live import request
from tests.cloud.small_published import SPLIT_VERSION, TASKS, SmallRun, small_run

Make = Callable[..., PageMaker]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("run"))


def maker(
    run: SmallRun, log: SqliteFeedbackLog, *, candidates: int = 20, config: PageConfig | None = None, utc_offset_h: int = 0
) -> PageMaker:
    p, states = run.published, UserStates(run.published, run.record)
    return PageMaker(
        p,
        msgspec.structs.replace(run.record, utc_offset_h=utc_offset_h),
        ranker=OnnxRanker(run.folder / "published", p, run.record),
        retriever=Retriever(ExactIndex.over(p.item_vector), p.item_popularity, RetrieverConfig(candidates=candidates)),
        states=states,
        intake=FeedbackIntake(log, states),
        config=config,
    )


@pytest.fixture
def make(run: SmallRun, tmp_path: Path) -> Iterator[Make]:
    log = SqliteFeedbackLog(tmp_path / "feedback.db")
    yield lambda **more: maker(run, log, **more)
    log.close()


def ids(page: Page) -> list[int]:
    return read_page(page).item_id.tolist()  # type: ignore[no-any-return]


def positions(run: SmallRun, page: Page) -> np.ndarray:
    return np.searchsorted(run.published.item_id, ids(page))


def test_a_page_carries_what_was_published_in_the_order_of_the_fused_scores(run: SmallRun, make: Make) -> None:
    weights = {"long_view": 1.0, "like": 3.0}
    page = make(config=PageConfig(task_weights=weights))(request(6, 10, scene=1, now_ms=7 * 3_600_000 + 1))
    check_page(page)
    at, columns = positions(run, page), read_page(page)
    assert len(at) == 10
    assert page.candidates.floats.names == ("pxtr_long_view", "pxtr_like", "duration_ms", "age_days")
    state = UserStates(run.published, run.record)(6)
    pxtr = run.expected_pxtr(6, state.history, at, scene_code=2, hour_code=8)
    np.testing.assert_allclose(columns.floats[:, :2], pxtr, atol=1e-6)
    np.testing.assert_array_equal(columns.floats[:, 2:], run.published.item_float[at])
    np.testing.assert_array_equal(columns.categories, run.published.item_category[at])
    np.testing.assert_array_equal(columns.vector, run.published.item_vector[at])
    np.testing.assert_allclose(columns.user_vector, run.expected_vector(6, state.history), rtol=1e-3, atol=1e-3)
    fused = columns.floats[:, 0] + 3 * columns.floats[:, 1]
    assert (np.diff(fused) <= 0).all()
    assert (page.split_version, page.split_reason) == (SPLIT_VERSION, None)


def test_a_page_holds_the_best_of_the_nearest(run: SmallRun, make: Make) -> None:
    """The whole journey of a warm user, recomputed in numpy."""
    state = UserStates(run.published, run.record)(6)
    near = run.published.item_vector.astype(np.float32) @ run.expected_vector(6, state.history)
    near[[0, *state.seen]] = -np.inf
    candidates = np.argsort(-near)[:20]
    fused = run.expected_pxtr(6, state.history, candidates, scene_code=1, hour_code=23).sum(1)
    expected = run.published.item_id[candidates[np.argsort(-fused)[:8]]]
    assert ids(make()(request(6, 8))) == expected.tolist()


def test_the_weights_decide_the_order(make: Make) -> None:
    for k, task in enumerate(TASKS):
        pxtr = read_page(make(config=PageConfig(task_weights={task: 1.0}, category_most=None))(request(6, 20))).floats[:, k]
        assert (np.diff(pxtr) <= 0).all()
    with pytest.raises(ValueError, match="share"):
        make(config=PageConfig(task_weights={"share": 1.0}))


def test_a_page_is_spread_over_categories(make: Make) -> None:
    def crowded(most: int | None) -> int:
        page = read_page(make(config=PageConfig(category_most=most))(request(6, 6)))
        return int(np.bincount(page.categories[:, 0]).max())

    assert crowded(1) == 1 < crowded(None)


def test_the_hour_is_counted_where_the_run_counted_it(run: SmallRun, make: Make) -> None:
    page = make(utc_offset_h=8)(request(6, 5, now_ms=20 * 3_600_000))
    state = UserStates(run.published, run.record)(6)
    pxtr = run.expected_pxtr(6, state.history, positions(run, page), scene_code=1, hour_code=5)
    np.testing.assert_allclose(read_page(page).floats[:, :2], pxtr, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [(None, "not asked for"), ("0ld", "unknown split version 0ld"), ("x" * 999, "unknown split version " + "x" * 64)],
)
def test_another_split_version_gets_no_vectors_and_is_told_why(make: Make, asked: str | None, reason: str) -> None:
    page = make()(request(split_version=asked))
    check_page(page)
    assert (page.candidates.vector, page.user_vector, page.split_version) == (None, None, None)
    assert page.split_reason == reason
    assert ids(page) == ids(make()(request()))


@pytest.mark.parametrize("size", [0, -1, 101])
def test_a_size_out_of_range_is_refused_before_its_feedback_counts(make: Make, size: int) -> None:
    pages = make()
    seen = event(1, ids(pages(request(1)))[0])
    with pytest.raises(ContractError, match="Expected 1 to 100 candidates") as caught:
        pages(request(1, size, feedback=(seen,)))
    assert caught.value.path == "$.size"
    assert seen.item_id in ids(pages(request(1)))


def test_feedback_of_the_request_counts_before_the_page_and_once(run: SmallRun, make: Make) -> None:
    pages = make()
    first = ids(pages(request(7)))
    seen = tuple(event(7, i, ms=n, watch_ms=30_000) for n, i in enumerate(first[:4]))
    second = pages(request(7, feedback=seen))
    assert not set(ids(second)) & set(first[:4])
    again = pages(request(7, feedback=seen))
    assert ids(again) == ids(second)
    np.testing.assert_array_equal(read_page(again).floats, read_page(second).floats)
    assert second.page_id != again.page_id


def test_excluded_items_stay_away_and_unknown_ones_are_no_harm(make: Make) -> None:
    pages = make()
    first = ids(pages(request(2)))
    assert set(ids(pages(request(2, exclude=(*first, 1, -7, 10**18))))).isdisjoint(first)


@given(user=st.integers(-(2**63), 2**63 - 1), size=st.integers(1, 100), scene=st.integers(-9, 9), now=st.integers(0, 2**62))
def test_every_user_gets_a_whole_page(run: SmallRun, shared: PageMaker, user: int, size: int, scene: int, now: int) -> None:
    page = shared(request(user, size, scene=scene, now_ms=now))
    check_page(page)
    found = ids(page)
    assert len(found) == len(set(found)) == min(size, 20)
    assert set(found) <= set(run.published.item_id[1:].tolist())
    assert page.created_ms == now


@pytest.fixture(scope="module")
def shared(run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageMaker]:
    log = SqliteFeedbackLog(tmp_path_factory.mktemp("log") / "feedback.db")
    yield maker(run, log)
    log.close()


def test_a_user_who_has_seen_all_but_three_gets_three_and_then_none(run: SmallRun, make: Make) -> None:
    pages = make()
    everything = run.published.item_id[1:].tolist()
    page = pages(request(8, feedback=tuple(event(8, i) for i in everything[3:])))
    assert sorted(ids(page)) == everything[:3]
    page = pages(request(8, feedback=tuple(event(8, i) for i in everything[:3])))
    check_page(page)
    assert ids(page) == []


def test_an_empty_catalogue_gives_an_empty_page(tmp_path: Path) -> None:
    run = small_run(tmp_path, items=0, users=1)
    log = SqliteFeedbackLog(tmp_path / "feedback.db")
    page = maker(run, log)(request(1))
    log.close()
    check_page(page)
    assert ids(page) == []
    assert page.split_version == SPLIT_VERSION


def test_threads_get_the_pages_that_one_would(make: Make) -> None:
    pages = make()
    users = [1, 2, 3, 4, 5, 6, 7, 8] * 10
    expected = [ids(pages(request(user))) for user in users]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda user: ids(pages(request(user))), users)) == expected


def test_a_page_of_an_experiment_knows_what_happened_in_it_alone(make: Make) -> None:
    maker = make()
    first = ids(maker(request(6, 5, experiment="a")))
    watched = event(6, first[0], experiment="a")
    assert first[0] not in ids(maker(request(6, 5, experiment="a", feedback=(watched,))))
    assert ids(maker(request(6, 5))) == ids(maker(request(6, 5, experiment="b"))) == first
    with pytest.raises(ContractError, match="a name of 1 to"):
        maker(request(6, 5, experiment=""))
