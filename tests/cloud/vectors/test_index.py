"""What every index does. Qdrant stands for itself by its client's local mode: no server can be had here, and only the way to
one that is not there is tested (`test_qdrant`)."""

from collections.abc import Callable, Iterator
from typing import Any

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
from pocketrank.cloud.vectors.qdrant import QdrantIndex
from tests.cloud.vectors.clusters import WIDTH, attributes, vectors

ITEMS, K = 1200, 20
IDS = np.random.default_rng(1).permutation(np.arange(ITEMS) * 3)
"""Not their positions, and with gaps."""
VECTORS, ATTRIBUTES = vectors(ITEMS, 2), attributes(ITEMS, 3)
QUERIES = vectors(10, 4)
AGE = 1_700_000_000_500


def in_lists() -> VectorIndex:
    """Lists that serve whatever their time, and read enough to be all but exact."""
    lists = ListsConfig(recall_min=0.999, recall_margin=0.001, time_ratio_max=1e9)
    index = IvfIndex(IvfConfig(lists=lists, exact_below=100, rebuild_share=1e9))
    index.upsert(IDS, VECTORS, ATTRIBUTES)
    assert index.rebuild(QUERIES).serving
    return index


def filled(make: Callable[[], VectorIndex]) -> Callable[[], VectorIndex]:
    def fill() -> VectorIndex:
        index = make()
        index.upsert(IDS, VECTORS, ATTRIBUTES)
        return index

    return fill


MAKE = {
    "exact": filled(ExactIndex),
    "before the first build": filled(IvfIndex),
    "lists": in_lists,
    "qdrant": filled(lambda: QdrantIndex(":memory:", "items-1")),
}


@pytest.fixture(params=MAKE)
def index(request: pytest.FixtureRequest) -> Iterator[VectorIndex]:
    made = MAKE[request.param]()
    yield made
    made.close()


@pytest.fixture(params=MAKE, scope="module")
def unchanged(request: pytest.FixtureRequest) -> Iterator[VectorIndex]:
    """One for all tests that only search."""
    made = MAKE[request.param]()
    yield made
    made.close()


def truth(query: NDArray[np.float32], k: int, where: AttributeFilter = ANY, exclude: NDArray[np.int64] = NONE) -> set[int]:
    allowed = where.passes(ATTRIBUTES) & ~np.isin(IDS, exclude)
    scores = np.where(allowed, VECTORS @ query, -np.inf)
    return set(IDS[np.argsort(-scores)[: min(k, np.count_nonzero(allowed))]].tolist())


WHERES = [
    ANY,
    AttributeFilter(categories=(0, 3)),
    AttributeFilter(categories=tuple(range(1, 40))),
    AttributeFilter(categories_not=(0, 1, 2)),
    AttributeFilter(authors=(0, 5 * 10**15)),
    AttributeFilter(authors_not=(0, 10**15)),
    AttributeFilter(created_from_ms=AGE),
    AttributeFilter(categories=(19,), created_from_ms=AGE),
    AttributeFilter(categories=(1, 2, 3, 4, 5), authors_not=(0,), created_from_ms=AGE),
    AttributeFilter(categories=()),
    AttributeFilter(authors=(7,)),
]


@pytest.mark.parametrize("where", WHERES, ids=range(len(WHERES)))
@pytest.mark.parametrize("excluded", [0, 5, 600, ITEMS])
def test_the_best_that_pass_and_are_not_excluded_come_back_in_order(
    unchanged: VectorIndex, where: AttributeFilter, excluded: int
) -> None:
    hits = wanted = 0
    for query in QUERIES[:5]:
        exclude = np.concatenate([IDS[np.argsort(-(VECTORS @ query))[:excluded]]] * 2 + [np.array([-1, 10**12])])
        expected = truth(query, K, where, exclude)
        found = unchanged.search(query, K, where=where, exclude=exclude)
        assert found.ids.dtype == np.int64
        assert found.scores.dtype == np.float32
        assert len(found.ids) == len(found.scores) == len(expected)
        assert len(set(found.ids.tolist())) == len(found.ids)
        at = np.array([int(np.flatnonzero(i == IDS)[0]) for i in found.ids.tolist()], np.int64)
        assert where.passes(ATTRIBUTES)[at].all()
        assert not np.isin(found.ids, exclude).any()
        np.testing.assert_allclose(found.scores, VECTORS[at] @ query, rtol=1e-4, atol=1e-4)
        assert (np.diff(found.scores) <= 0).all()
        hits, wanted = hits + len(expected & set(found.ids.tolist())), wanted + len(expected)
    assert hits >= 0.97 * wanted


@pytest.mark.parametrize("k", [0, 1, ITEMS, 10 * ITEMS])
def test_as_many_come_back_as_there_are(unchanged: VectorIndex, k: int) -> None:
    assert len(unchanged.search(QUERIES[0], k).ids) == min(k, ITEMS)


def test_what_is_put_in_is_found_by_the_next_search(index: VectorIndex) -> None:
    best = 3 * QUERIES[1][None]
    index.upsert(np.array([10**7]), best, Attributes(np.array([5]), np.array([77], np.int32), np.array([AGE])))
    assert len(index) == ITEMS + 1
    for where in (ANY, AttributeFilter(categories=(77,)), AttributeFilter(authors=(5,), created_from_ms=AGE)):
        assert index.search(QUERIES[1], 1, where=where).ids.tolist() == [10**7]
    assert index.search(QUERIES[1], 1, exclude=np.array([10**7])).ids[0] in truth(QUERIES[1], 1)


def test_a_row_that_is_put_in_again_is_the_new_one_whole(index: VectorIndex) -> None:
    query, known = QUERIES[2], IDS[5]
    old, new = AttributeFilter(categories=(int(ATTRIBUTES.category[5]),)), AttributeFilter(categories=(78,))
    index.search(query, K, where=old)
    index.search(query, K, where=new)  # a filter's answer is known before it changes
    index.upsert(IDS[5:6], 5 * query[None], Attributes(np.array([0]), np.array([78], np.int32), np.array([AGE])))
    assert len(index) == ITEMS
    assert index.search(query, 1).ids.tolist() == [known]
    assert index.search(query, K, where=new).ids.tolist() == [known]
    assert known not in index.search(query, ITEMS, where=old).ids


def test_what_is_deleted_does_not_come_back(index: VectorIndex) -> None:
    gone = IDS[: ITEMS // 2]
    index.search(QUERIES[0], K, where=WHERES[1])
    index.delete(np.concatenate([gone, gone[:3], [10**9]]))
    index.delete(gone)
    assert len(index) == ITEMS - len(gone)
    for where in (ANY, WHERES[1]):
        found = index.search(QUERIES[0], ITEMS, where=where).ids
        assert set(found.tolist()) == truth(QUERIES[0], ITEMS, where, gone)
    index.upsert(gone[:100], VECTORS[:100], ATTRIBUTES.take(slice(0, 100)))
    assert set(index.search(QUERIES[0], ITEMS).ids.tolist()) == truth(QUERIES[0], ITEMS, ANY, gone[100:])


def test_everything_can_be_deleted(index: VectorIndex) -> None:
    index.delete(IDS)
    assert len(index) == 0
    assert index.search(QUERIES[0], K).ids.tolist() == []
    index.upsert(IDS[:1], VECTORS[:1], ATTRIBUTES.take(slice(0, 1)))
    assert index.search(QUERIES[0], K).ids.tolist() == IDS[:1].tolist()


def test_of_an_id_that_comes_twice_the_last_row_counts(index: VectorIndex) -> None:
    twice = np.stack([5 * QUERIES[0], -5 * QUERIES[0]])
    index.upsert(np.array([10**6, 10**6]), twice, Attributes.unknown(2))
    assert len(index) == ITEMS + 1
    assert 10**6 not in index.search(QUERIES[0], 1).ids
    assert index.search(-QUERIES[0], 1).ids.tolist() == [10**6]


def test_no_rows_change_nothing(index: VectorIndex) -> None:
    index.upsert(NONE, np.zeros((0, WIDTH), np.float32), Attributes.unknown(0))
    index.delete(NONE)
    assert len(index) == ITEMS


def test_the_index_does_not_change_with_the_arrays_it_was_given(index: VectorIndex) -> None:
    row = 5 * QUERIES[:1].copy()
    index.upsert(np.array([10**6]), row, Attributes.unknown(1))
    row[:] = 0
    assert index.search(QUERIES[0], 1).ids.tolist() == [10**6]


ROW: dict[str, Any] = {"ids": np.array([1]), "vectors": np.ones((1, WIDTH)), "attributes": Attributes.unknown(1)}


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"vectors": np.ones((1, WIDTH + 1))}, WidthError, "a width of 16, got 17"),
        ({"vectors": np.ones((2, WIDTH))}, RowsError, r"an array \[1, D\]"),
        ({"vectors": np.ones(WIDTH)}, RowsError, r"an array \[1, D\]"),
        ({"vectors": np.full((1, WIDTH), np.nan)}, RowsError, "finite"),
        ({"vectors": np.full((1, WIDTH), 7e4)}, RowsError, r"up to 65504.*vectors\[0\]"),
        ({"ids": np.array([-1])}, RowsError, "from 0 on, got -1"),
        ({"attributes": Attributes.unknown(2)}, RowsError, r"attributes\.author"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_change_nothing(
    index: VectorIndex, wrong: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        index.upsert(**{**ROW, **wrong})
    assert len(index) == ITEMS


def test_a_query_that_does_not_fit_is_refused(unchanged: VectorIndex) -> None:
    with pytest.raises(WidthError, match="a width of 16"):
        unchanged.search(np.ones(WIDTH + 1, np.float32), 1)
    with pytest.raises(RowsError, match="finite"):
        unchanged.search(np.full(WIDTH, np.nan, np.float32), 1)


def test_a_closed_index_says_so(index: VectorIndex) -> None:
    index.close()
    index.close()
    with pytest.raises(IndexUnavailableError, match="a closed one"):
        index.search(QUERIES[0], 1)
    with pytest.raises(IndexUnavailableError, match="a closed one"):
        index.upsert(**ROW)
    with pytest.raises(IndexUnavailableError, match="a closed one"):
        index.delete(IDS[:1])


@pytest.mark.parametrize("make", [ExactIndex, IvfIndex, lambda: QdrantIndex(":memory:", "empty")])
def test_an_empty_index_finds_nothing(make: Callable[[], VectorIndex]) -> None:
    index = make()
    assert len(index) == 0
    assert index.search(np.ones(3, np.float32), 5).ids.tolist() == []
    index.delete(np.array([1]))
    index.close()
