import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.retrieval.exact import ExactIndex
from cloud.retrieval.retriever import Retriever, RetrieverConfig

ITEMS = 30
RNG = np.random.default_rng(1)
INDEX = ExactIndex.over(RNG.normal(size=(ITEMS, 4)).astype(np.float32))
POPULARITY = RNG.random(ITEMS).astype(np.float32)
USER = RNG.normal(size=4).astype(np.float32)
NOTHING = np.zeros(0, np.int64)


def retriever(**config: float) -> Retriever:
    return Retriever(INDEX, POPULARITY, RetrieverConfig(**config))  # type: ignore[arg-type]


@given(
    candidates=st.integers(1, 40),
    events=st.integers(0, 10),
    share=st.floats(0, 1),
    exclude=st.lists(st.integers(0, ITEMS - 1), max_size=40),
)
def test_no_repeats_nothing_excluded_and_as_many_as_there_are(
    candidates: int, events: int, share: float, exclude: list[int]
) -> None:
    make = retriever(candidates=candidates, cold_popular_share=share)
    found = make(USER, events, np.array(exclude, np.int64)).tolist()
    assert len(found) == len(set(found)) == min(candidates, ITEMS - len(set(exclude)))
    assert not set(found) & set(exclude)


def test_a_warm_user_gets_the_nearest() -> None:
    found = retriever(candidates=6, cold_events=5)(USER, 5, NOTHING)
    assert found.tolist() == INDEX.search(USER, 6).ids.tolist()


def test_a_cold_user_gets_the_popular_first_and_then_the_nearest() -> None:
    found = retriever(candidates=6, cold_events=5, cold_popular_share=0.5)(USER, 4, NOTHING).tolist()
    popular = np.argsort(-POPULARITY)[:3].tolist()
    nearest = [i for i in INDEX.search(USER, ITEMS).ids.tolist() if i not in popular]
    assert found == popular + nearest[:3]


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"cold_events": -1}, {"cold_popular_share": 1.5}])
def test_a_config_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected candidates >= 1"):
        RetrieverConfig(**wrong)  # type: ignore[arg-type]
