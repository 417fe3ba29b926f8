"""The ways that an index of lists answers, how it is judged, and how it is built anew. Which way a search took shows in its
scores: lists hold fp16, and these vectors are not."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketrank.cloud.vectors.exact import ExactIndex
from pocketrank.cloud.vectors.index import (
    ANY,
    NONE,
    AttributeFilter,
    Attributes,
    IndexUnavailableError,
    RowsError,
    VectorIndex,
    WidthError,
)
from pocketrank.cloud.vectors.ivf import IvfConfig, IvfIndex
from pocketrank.cloud.vectors.lists import ListsConfig
from tests.cloud.vectors.clusters import WIDTH, attributes, vectors

ITEMS, K = 20_000, 100
IDS, ATTRIBUTES = np.arange(ITEMS), attributes(ITEMS, 3)
VECTORS = vectors(ITEMS, 2) * np.float32(1.0001)
QUERIES = vectors(60, 4)
ANY_TIME = ListsConfig(time_ratio_max=1e9)
"""No test may hang on how fast this machine is."""


def over(config: IvfConfig, items: int = ITEMS) -> IvfIndex:
    index = IvfIndex(config)
    index.upsert(IDS[:items], VECTORS[:items], ATTRIBUTES.take(slice(0, items)))
    return index


@pytest.fixture(scope="module")
def exact() -> ExactIndex:
    return ExactIndex.over(VECTORS, ATTRIBUTES)


@pytest.fixture(scope="module")
def index() -> IvfIndex:
    made = over(IvfConfig(lists=ANY_TIME, exact_below=ITEMS, rebuild_share=1e9))
    assert made.rebuild(QUERIES).serving
    return made


def recall(
    index: VectorIndex, exact: ExactIndex, k: int, where: AttributeFilter = ANY, exclude: NDArray[np.int64] = NONE
) -> float:
    hits = wanted = 0
    for query in QUERIES:
        right = exact.search(query, k, where=where, exclude=exclude).ids
        hits += len(np.intersect1d(index.search(query, k, where=where, exclude=exclude).ids, right))
        wanted += len(right)
    return hits / wanted


def by_lists(index: VectorIndex, k: int = K, where: AttributeFilter = ANY, exclude: NDArray[np.int64] = NONE) -> bool:
    found = index.search(QUERIES[0], k, where=where, exclude=exclude)
    return not np.allclose(found.scores, VECTORS[found.ids] @ QUERIES[0], rtol=1e-6, atol=0)


def test_a_build_measures_what_it_promises(index: IvfIndex, exact: ExactIndex) -> None:
    report = index.report
    assert report is not None
    assert report.items == ITEMS
    assert report.queries == "given"
    assert 1 <= report.nprobe < report.nlist
    assert report.recall >= 0.97
    assert report.bytes > ITEMS * WIDTH * (2 + 4)
    assert report.recall == pytest.approx(recall(index, exact, K), abs=0.01)
    assert by_lists(index)


@pytest.mark.parametrize("k", [1, 100, 150, 700, 3000])
def test_more_results_read_more_lists(index: IvfIndex, exact: ExactIndex, k: int) -> None:
    assert recall(index, exact, k) >= 0.96


def test_more_results_than_were_measured_are_exact(index: IvfIndex, exact: ExactIndex) -> None:
    assert by_lists(index, 4000)
    assert not by_lists(index, 11_000)
    assert recall(index, exact, 11_000) == 1


@pytest.mark.parametrize(
    ("where", "lists"),
    [
        (AttributeFilter(categories=(19,)), False),
        (AttributeFilter(categories=tuple(range(3, 20))), True),
        (AttributeFilter(categories_not=(0,)), True),
    ],
)
def test_a_filter_that_leaves_little_is_exact_and_others_read_more_lists(
    index: IvfIndex, exact: ExactIndex, where: AttributeFilter, lists: bool
) -> None:
    assert by_lists(index, where=where) is lists
    assert recall(index, exact, K, where) >= (0.96 if lists else 1)


def test_a_filter_that_goes_with_the_vectors_is_met_too() -> None:
    # Each quarter of the room is a category, and the query asks for one that it is far from.
    category = (2 * (VECTORS[:, 0] > 0) + (VECTORS[:, 1] > 0) + 1).astype(np.int32)
    known = Attributes.unknown(ITEMS)._replace(category=category)
    config = IvfConfig(lists=ANY_TIME, exact_below=1, rebuild_share=1e9, exact_share=0)
    index, exact = IvfIndex(config), ExactIndex.over(VECTORS, known)
    index.upsert(IDS, VECTORS, known)
    index.rebuild(QUERIES)
    for code in (1, 2, 3, 4):
        assert recall(index, exact, K, AttributeFilter(categories=(code,))) >= 0.96
    index.close()


def test_exclusions_are_made_up_for(index: IvfIndex, exact: ExactIndex) -> None:
    exclude = exact.search(QUERIES[0], 400).ids
    assert by_lists(index, exclude=exclude)
    assert recall(index, exact, K, exclude=exclude) >= 0.96
    assert recall(index, exact, K, AttributeFilter(categories_not=(0,)), exclude) >= 0.96
    assert not by_lists(index, exclude=IDS[: ITEMS * 95 // 100])


def test_exact_search_takes_over_where_lists_miss_their_recall_or_their_time() -> None:
    for lists in (ListsConfig(time_ratio_max=1e-9), ListsConfig(recall_min=1.0, time_ratio_max=1e9)):
        # In fp16 these vectors are one, so that lists cannot tell the better from the others.
        index = IvfIndex(IvfConfig(lists=lists, exact_below=1, rebuild_share=1e9))
        index.upsert(IDS[:5000], np.repeat(VECTORS[:1], 5000, 0) + np.float32(1e-6) * VECTORS[:5000], Attributes.unknown(5000))
        report = index.rebuild(QUERIES)
        assert not report.serving
        right = ExactIndex.over(np.repeat(VECTORS[:1], 5000, 0) + np.float32(1e-6) * VECTORS[:5000])
        assert recall(index, right, K) == 1
        index.close()


def test_few_items_are_searched_exactly() -> None:
    index = over(IvfConfig(exact_below=1001), 1000)
    index.wait()
    assert index.report is None
    assert not index.rebuild().serving
    index.close()


def test_recall_is_measured_with_queries_that_were_served_once_there_are_enough() -> None:
    index = over(IvfConfig(exact_below=1, rebuild_share=1e9, queries_kept=40), 1000)
    for query in QUERIES[:9]:
        index.search(query, K)
    assert index.rebuild().queries == "items"
    index.search(QUERIES[9], K)
    assert index.rebuild().queries == "served"
    with pytest.raises(WidthError, match="a width of 16"):
        index.rebuild(np.ones((3, WIDTH + 1), np.float32))
    index.close()


def test_nothing_cannot_be_built_over() -> None:
    with pytest.raises(RowsError, match="items to build lists over"):
        IvfIndex().rebuild()


def test_the_index_builds_itself_when_it_has_grown_and_when_it_has_changed() -> None:
    index = IvfIndex(IvfConfig(lists=ANY_TIME, exact_below=2000, rebuild_share=0.5))
    index.upsert(IDS[:1999], VECTORS[:1999], ATTRIBUTES.take(slice(0, 1999)))
    index.wait()
    assert index.report is None
    index.upsert(IDS[1999:2000], VECTORS[1999:2000], ATTRIBUTES.take(slice(1999, 2000)))
    index.wait()
    assert index.report is not None
    assert index.report.items == 2000
    index.upsert(IDS[2000:3000], VECTORS[2000:3000], ATTRIBUTES.take(slice(2000, 3000)))
    index.wait()
    assert index.report.items == 2000
    index.delete(IDS[:700])
    index.wait()
    assert index.report.items == 2300
    index.close()


def test_what_changes_during_a_build_is_in_the_new_lists() -> None:
    # So few rows at a swap that changes are repeated in rounds before it.
    index = over(IvfConfig(lists=ANY_TIME, exact_below=1, rebuild_share=1e9, swap_rows=8), 5000)
    index.rebuild()
    built, new = threading.Event(), 5000

    def rebuild() -> None:
        for _ in range(3):
            index.rebuild(QUERIES)  # recall is promised for the queries that it was measured with
        built.set()

    thread = threading.Thread(target=rebuild)
    thread.start()
    while not built.is_set() and new < ITEMS:
        index.upsert(IDS[new : new + 5], VECTORS[new : new + 5], ATTRIBUTES.take(slice(new, new + 5)))
        index.delete(IDS[new - 5000 : new - 4998])
        new += 5
    thread.join()
    assert index.report is not None
    live = np.setdiff1d(IDS[:new], np.concatenate([IDS[at - 5000 : at - 4998] for at in range(5000, new, 5)]))
    assert len(index) == len(live)
    right = ExactIndex()
    right.upsert(live, VECTORS[live], ATTRIBUTES.take(live))
    assert recall(index, right, K) >= 0.96
    index.close()


def test_closing_waits_for_a_build_and_ends_it() -> None:
    index = over(IvfConfig(exact_below=1), 5000)
    index.close()
    with pytest.raises(IndexUnavailableError, match="a closed one"):
        index.rebuild()


@pytest.mark.parametrize("kind", ["exact", "lists"])
def test_searches_go_on_and_are_right_while_everything_changes(kind: str) -> None:
    """Stable rows must be found, deleted and excluded ones must not, and no row may be half of one and half of another."""
    index: VectorIndex
    index = ExactIndex() if kind == "exact" else IvfIndex(IvfConfig(lists=ANY_TIME, exact_below=1, swap_rows=64))
    half = 3000
    index.upsert(IDS[:half], VECTORS[:half], ATTRIBUTES.take(slice(0, half)))
    index.delete(IDS[:100])  # for good
    if isinstance(index, IvfIndex):
        index.rebuild(QUERIES)
    done = threading.Event()
    exclude = IDS[100:200]
    sign = np.array([1.0, -1.0], np.float32)

    def write(first: int) -> int:
        """Rows that come, turn around with their category, and go."""
        rounds = 0
        while rounds < 60:
            part = slice(first, first + 50)
            for way in (0, 1):
                known = Attributes.unknown(50)._replace(category=np.full(50, 100 + way, np.int32))
                index.upsert(IDS[part], sign[way] * 9 * np.abs(VECTORS[part]), known)
            index.delete(IDS[part])
            rounds += 1
        return rounds

    def rebuild() -> int:
        rounds = 0
        while isinstance(index, IvfIndex) and not done.is_set():
            index.rebuild()
            rounds += 1
        return rounds

    def search(seed: int) -> int:
        rng, searches = np.random.default_rng(seed), 0
        positive = np.ones(WIDTH, np.float32)
        while not done.is_set():
            query = QUERIES[rng.integers(len(QUERIES))]
            found = index.search(query, K, where=AttributeFilter(categories_not=(100, 101)), exclude=exclude)
            assert len(found.ids) == K
            assert found.ids.min() >= 200
            assert found.ids.max() < half
            np.testing.assert_allclose(found.scores, VECTORS[found.ids] @ query, rtol=2e-3, atol=2e-2)
            assert (index.search(positive, K, where=AttributeFilter(categories=(100,))).scores > 0).all()
            assert (index.search(positive, K, where=AttributeFilter(categories=(101,))).scores < 0).all()
            assert index.search(query, K, exclude=exclude).ids.min() >= 200
            searches += 1
        return searches

    with ThreadPoolExecutor(6) as pool:
        searching = [pool.submit(search, seed) for seed in range(3)]
        building = pool.submit(rebuild)
        writing = [pool.submit(write, half + 1000 * i) for i in range(2)]
        try:
            written = [future.result(timeout=120) for future in writing]
        finally:
            done.set()
        assert written == [60, 60]
        assert all(future.result(timeout=60) > 0 for future in searching)
        assert building.result(timeout=60) > 0 or kind == "exact"
    assert len(index) == half - 100
    index.close()
