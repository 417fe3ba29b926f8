import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.device.strategies import DPP, MMR, Arranger, Slate
from tests.device.strategies.pages import cloud_order, page_of, show_all

TOLERANCE = 1e-3  # f32 sums, and vectors that crossed the wire as f16


def relevance(scores: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
    return (scores - scores.max()) / spread


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    wire = vectors.astype(np.float16).astype(np.float64)
    return wire / np.linalg.norm(wire, axis=1, keepdims=True)


def mmr(rule: MMR, shown: list[NDArray[np.float64]], candidate: NDArray[np.float64]) -> float:
    return -max([0.0, *(float(candidate @ other) for other in shown)])


def dpp(rule: DPP, shown: list[NDArray[np.float64]], candidate: NDArray[np.float64]) -> float:
    """log det of the kernel with the candidate, less that without it."""

    def log_det(vectors: list[NDArray[np.float64]]) -> float:
        if not vectors:
            return 0.0
        kernel = (1 - rule.independent) * np.array([[a @ b for b in vectors] for a in vectors])
        np.fill_diagonal(kernel, 1)
        return float(np.linalg.slogdet(kernel)[1])

    return log_det([*shown, candidate]) - log_det(shown)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([MMR(0.5, 4), MMR(2.0, 0), DPP(0.5, 4), DPP(2.0, 0), DPP(0.3, 25, independent=0.5)]),
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(2, 5),
    st.integers(0, 2**32 - 1),
)
def test_greedy_against_the_definition(rule: MMR | DPP, sizes: list[int], width: int, seed: int) -> None:
    """Several pages, each shown but for its last items, with scores that change at every swipe."""
    rng, slate, past = np.random.default_rng(seed), Arranger([rule]).start(), []
    for size in sizes:
        items = list(range(size))
        raw = rng.normal(size=(size, width))
        vectors, scores = unit(raw), rng.random(size)
        slate.take(page_of(items, vectors=raw), items)
        before = past[-rule.memory :] if rule.memory else []
        shown: list[NDArray[np.float64]] = []
        left = list(items)
        spread = float(np.ptp(scores)) or 1.0
        for _ in range(max(1, size - 2)):
            order = np.argsort(-scores, kind="stable")
            slate.order(order, scores)  # looking ahead leaves no trace
            index = slate.first(order, scores)
            assert index is not None
            of = mmr if isinstance(rule, MMR) else dpp
            values = relevance(scores, spread) + rule.weight * np.array([of(rule, before + shown, vectors[i]) for i in left])
            assert values[index] >= values.max() - TOLERANCE
            slate.show(index)
            shown.append(vectors[left.pop(index)])
            scores = np.clip(np.delete(scores, index) + rng.normal(0, 0.1, len(left)), 0, 1)
        past += shown


@pytest.mark.parametrize("rule", [MMR(0.6), DPP(0.4)])
def test_without_vectors_it_goes_by_category(rule: MMR | DPP) -> None:
    slate = Arranger([rule]).start()
    slate.take(page_of([1, 2, 3, 4, 5], {"category": [7, 7, 8, 0, 0]}), [1, 2, 3, 4, 5])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.0])
    assert slate.order(cloud_order(5), scores).tolist() == [0, 2, 3, 1, 4]
    for _ in range(5):
        slate.show(0)
    slate.take(page_of([6, 7, 8], {"category": [8, 9, 7]}), [6, 7, 8])
    assert slate.order(cloud_order(3)).tolist() == [1, 0, 2]
    assert slate.counters.column_missing == {}
    slate.take(page_of([9, 10]), [9, 10])
    assert slate.order(cloud_order(2)).tolist() == [0, 1]
    assert slate.counters.column_missing == {rule.name: 1}


def _after_one(rule: MMR | DPP, first: str, second: str, width: int = 2) -> Slate:
    slate = Arranger([rule]).start()
    slate.take(page_of([1], vectors=np.array([[1.0, 0.0]]), split=first), [1])
    slate.show(0)
    slate.take(page_of([2, 3], vectors=np.eye(width)[:2], split=second), [2, 3])
    return slate


@pytest.mark.parametrize("rule", [MMR(2.0), DPP(2.0)])
def test_vectors_are_compared_within_a_split_version_and_width(rule: MMR | DPP) -> None:
    assert _after_one(rule, "a", "a").first(cloud_order(2)) == 1
    assert _after_one(rule, "a", "b").first(cloud_order(2)) == 0
    assert _after_one(rule, "a", "a", width=3).first(cloud_order(2)) == 0


def test_a_dpp_sees_what_several_items_make_up_together() -> None:
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0.7, 0.7, 0.1], [0.75, 0, 0.66]])
    scores = np.array([1.0, 0.9, 0.5, 0.5])
    orders = {}
    for rule in (MMR(0.3), DPP(0.3)):
        slate = Arranger([rule]).start()
        slate.take(page_of([1, 2, 3, 4], vectors=vectors), [1, 2, 3, 4])
        orders[type(rule)] = slate.order(cloud_order(4), scores).tolist()
    assert orders == {MMR: [0, 1, 2, 3], DPP: [0, 1, 3, 2]}


def test_a_list_that_a_search_chose_stays_in_its_order() -> None:
    """Its first items may have lower scores than later ones."""
    slate = Arranger([MMR(0.0), DPP(0.0)]).start()
    slate.take(page_of([1, 2, 3], vectors=np.eye(3)), [1, 2, 3])
    assert slate.order(np.array([1, 0, 2]), np.array([0.9, 0.1, 0.5])).tolist() == [1, 0, 2]


def test_a_decision_names_the_preference_that_moved_it() -> None:
    slate = Arranger([MMR(0.6)]).start()
    slate.take(page_of([1, 2, 3], {"category": [7, 7, 8]}), [1, 2, 3])
    shown = show_all(slate, [1, 2, 3], most=2)
    assert shown == [1, 3]
    assert slate.decision is not None
    assert (slate.decision.item_id, slate.decision.model_item_id, slate.decision.preferred) == (3, 2, (MMR(0.6).name,))
    assert slate.counters.fired == {MMR(0.6).name: 1}


@pytest.mark.parametrize("numbers", [{"weight": -1}, {"weight": float("nan")}, {"memory": -1}, {"memory": 65}])
def test_numbers_out_of_range_are_refused(numbers: dict[str, float]) -> None:
    for kind in (MMR, DPP):
        with pytest.raises(ValueError, match="expected a"):
            kind(**numbers)
    with pytest.raises(ValueError, match="expected an independent share"):
        DPP(independent=0)
