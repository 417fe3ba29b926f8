from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.pipeline.config import PageConfig, PipelineConfig
from pocketrank.device.codec import read_page
from pocketrank.device.contract import ContractError, Page
from tests.cloud.events import event
from tests.cloud.serving.live import request
from tests.cloud.serving.pages import Pages, SeenPages, pages, stages
from tests.cloud.small_published import SPLIT_VERSION, TASKS, UPLOAD_MS, SmallRun, small_run

Make = Callable[..., Pages]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def make(run: SmallRun, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def made(folder: Path = run.folder, *, page: PageConfig | None = None, **of_stages: Any) -> Pages:
            config = PipelineConfig(page=page or PageConfig(), stage=stages(**of_stages))
            return stack.enter_context(pages(folder, tmp_path / "feedback.db", config))

        yield made


def ids(page: Page) -> list[int]:
    return read_page(page).item_id.tolist()  # type: ignore[no-any-return]


def positions(run: SmallRun, page: Page) -> np.ndarray:
    return np.searchsorted(run.published.item_id, ids(page))


def test_a_page_carries_what_was_published_in_the_order_of_the_fused_scores(run: SmallRun, make: Make) -> None:
    now = UPLOAD_MS // 86_400_000 * 86_400_000 + 7 * 3_600_000 + 1
    page = make(formula="long_view + 3 * like")(request(6, 10, scene=1, now_ms=now))
    read_page(page)
    at, columns = positions(run, page), read_page(page)
    assert len(at) == 10
    assert page.candidates.floats.names == ("pxtr_long_view", "pxtr_like", "duration_ms", "age_days", "age")
    state = UserStates(run.published, run.record)(6)
    pxtr = run.expected_pxtr(6, state.history, at, scene_code=2, hour_code=8)
    np.testing.assert_allclose(columns.floats[:, :2], pxtr, atol=1e-6)
    np.testing.assert_array_equal(columns.floats[:, 2:4], run.published.item_float[at])
    age = (now - run.published.item_upload_ms[at]) / 86_400_000
    np.testing.assert_allclose(columns.floats[:, 4], age, rtol=1e-6)
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


def test_the_formula_decides_the_order(make: Make) -> None:
    for k, task in enumerate(TASKS):
        pxtr = read_page(make(formula=task)(request(6, 20))).floats[:, k]
        assert (np.diff(pxtr) <= 0).all()
    with pytest.raises(ValueError, match="share"):
        make(formula="share")


def test_a_page_is_spread_over_categories(make: Make) -> None:
    def crowded(most: int | None) -> int:
        page = read_page(make(most=most)(request(6, 6)))
        return int(np.bincount(page.categories[:, 0]).max())

    assert crowded(1) == 1 < crowded(None)


def test_the_hour_is_counted_where_the_run_counted_it(tmp_path: Path, make: Make) -> None:
    run = small_run(tmp_path / "east", time_zone="Asia/Shanghai")
    page = make(run.folder)(request(6, 5, now_ms=20 * 3_600_000))
    state = UserStates(run.published, run.record)(6)
    pxtr = run.expected_pxtr(6, state.history, positions(run, page), scene_code=1, hour_code=5)
    np.testing.assert_allclose(read_page(page).floats[:, :2], pxtr, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [(None, "not asked for"), ("0ld", "unknown split version 0ld"), ("x" * 999, "unknown split version " + "x" * 64)],
)
def test_another_split_version_gets_no_vectors_and_the_reason(make: Make, asked: str | None, reason: str) -> None:
    page = make()(request(split_version=asked))
    read_page(page)
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


def test_excluded_items_are_left_out_and_unknown_ones_do_no_harm(make: Make) -> None:
    pages = make()
    first = ids(pages(request(2)))
    assert set(ids(pages(request(2, exclude=(*first, 1, -7, 10**18))))).isdisjoint(first)


@pytest.mark.parametrize("size", [1, 40])
def test_the_smallest_and_the_largest_page_are_made(make: Make, size: int) -> None:
    assert len(ids(make(page=PageConfig(size_max=40), candidates=40)(request(1, size)))) == size


def test_a_page_names_its_request_and_lives_as_long_as_the_file_says(make: Make) -> None:
    asked = request(6, 5, now_ms=UPLOAD_MS)
    page = make(page=PageConfig(ttl_ms=1234))(asked)
    assert (page.request_id, page.created_ms, page.ttl_ms, page.degraded) == (asked.request_id, UPLOAD_MS, 1234, ())


def test_what_is_not_known_of_a_candidate_is_nan(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    run.published.item_upload_ms[60] = np.iinfo(np.int64).min
    run.published.item_upload_ms[59] = -86_400_000
    run.save()
    with pages(run.folder, tmp_path / "feedback.db", PipelineConfig(stage=stages(candidates=60)[:1])) as made:
        page = made(request(0, 60, now_ms=86_400_000))
    at, columns = positions(run, page), read_page(page)
    assert np.isnan(columns.floats[:, :2]).all(), "nothing was ranked"
    age = columns.floats[:, 4]
    assert np.isnan(age[at == 60]).all()
    assert age[at == 59].tolist() == [2.0]
    assert np.isfinite(age[at < 60]).all()


@given(user=st.integers(-(2**63), 2**63 - 1), size=st.integers(1, 100), scene=st.integers(-9, 9), now=st.integers(0, 2**62))
def test_every_user_gets_a_whole_page(run: SmallRun, shared: Pages, user: int, size: int, scene: int, now: int) -> None:
    page = shared(request(user, size, scene=scene, now_ms=now))
    read_page(page)
    found = ids(page)
    assert len(found) == len(set(found)) == min(size, 20)
    assert set(found) <= set(run.published.item_id[1:].tolist())
    assert page.created_ms == now


@pytest.fixture(scope="module")
def shared(run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with pages(run.folder, tmp_path_factory.mktemp("log") / "feedback.db") as made:
        yield made


def test_a_user_who_has_seen_all_but_three_gets_three_and_then_none(run: SmallRun, make: Make) -> None:
    pages = make()
    everything = run.published.item_id[1:].tolist()
    page = pages(request(8, feedback=tuple(event(8, i) for i in everything[3:])))
    assert sorted(ids(page)) == everything[:3]
    page = pages(request(8, feedback=tuple(event(8, i) for i in everything[:3])))
    read_page(page)
    assert ids(page) == []


def test_an_empty_catalogue_gives_an_empty_page(tmp_path: Path) -> None:
    run = small_run(tmp_path, items=0, users=1)
    with pages(run.folder, tmp_path / "feedback.db") as made:
        page = made(request(1))
    read_page(page)
    assert ids(page) == []
    assert page.split_version == SPLIT_VERSION


def test_only_the_features_that_the_file_names_are_sent(run: SmallRun, make: Make) -> None:
    page = make(page=PageConfig(features=("category", "pxtr_like", "age")))(request(6, 5))
    read_page(page)
    assert page.candidates.floats.names == ("pxtr_like", "age")
    assert page.candidates.categories.names == ("category",)
    whole = read_page(make()(request(6, 5)))
    np.testing.assert_array_equal(read_page(page).floats, whole.floats[:, [1, 4]])
    with pytest.raises(ValueError, match="pxtr_share"):
        make(page=PageConfig(features=("pxtr_share",)))


def test_a_page_of_an_experiment_knows_what_happened_in_it_alone(make: Make) -> None:
    maker = make()
    first = ids(maker(request(6, 5, experiment="a")))
    watched = event(6, first[0], experiment="a")
    assert first[0] not in ids(maker(request(6, 5, experiment="a", feedback=(watched,))))
    assert ids(maker(request(6, 5))) == ids(maker(request(6, 5, experiment="b"))) == first
    with pytest.raises(ContractError, match="a name of 1 to"):
        maker(request(6, 5, experiment=""))


def test_an_observer_learns_the_parts_of_each_page_and_what_it_lacks(run: SmallRun, tmp_path: Path) -> None:
    observed = SeenPages()
    with pages(run.folder, tmp_path / "feedback.db", observer=observed) as made:
        made(request(6, 5))
        assert observed.stages[:2] == ["state", "tower"]
        assert observed.stages[-1] == "assemble"
        made(request(6, 5, split_version=None))
        made(request(6, 5, split_version="another"))
        assert [returned for _, returned, _ in observed.pages] == [5, 5, 5]
        assert all(retrieved >= 5 for retrieved, _, _ in observed.pages)
        assert [without for _, _, without in observed.pages] == [None, "not_asked", "unknown"]
        assert observed.reasons == []
