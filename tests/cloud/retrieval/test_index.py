import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.retrieval.index import ExactIndex

NOTHING = np.zeros(0, np.int64)


@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(1, 60),
    k=st.integers(0, 80),
    excluded=st.lists(st.integers(0, 59), max_size=70),
    coarse=st.booleans(),
)
def test_the_answer_is_the_sorted_catalogue_without_the_excluded(
    seed: int, items: int, k: int, excluded: list[int], coarse: bool
) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers make ties, the case in which a partition alone would pick at random.
    vectors = rng.integers(-1, 2, (items, 3)).astype(np.float16) if coarse else rng.normal(size=(items, 3)).astype(np.float16)
    query = rng.integers(-1, 2, 3).astype(np.float32)
    exclude = np.array([e for e in excluded if e < items], np.int64)
    found = ExactIndex(vectors).search(query, k, exclude)
    scores = {i: float(vectors[i].astype(np.float32) @ query) for i in range(items) if i not in set(exclude.tolist())}
    assert len(found) == min(k, len(scores))
    assert len(set(found.tolist())) == len(found)
    got = [scores[i] for i in found.tolist()]
    np.testing.assert_allclose(got, sorted(scores.values(), reverse=True)[: len(found)], rtol=1e-5, atol=1e-6)
    if coarse:
        assert found.tolist() == sorted(scores, key=lambda i: (-scores[i], i))[:k]


def test_an_empty_index_finds_nothing() -> None:
    assert ExactIndex(np.zeros((0, 4), np.float16)).search(np.ones(4, np.float32), 5, NOTHING).tolist() == []


def test_the_index_does_not_change_with_the_array_it_was_built_from() -> None:
    vectors = np.eye(3, dtype=np.float32)
    index = ExactIndex(vectors)
    vectors[:] = vectors[::-1].copy()
    assert index.search(np.array([1, 0, 0], np.float32), 1, NOTHING).tolist() == [0]


def test_a_query_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="mismatch"):
        ExactIndex(np.eye(3)).search(np.ones(4, np.float32), 1, NOTHING)
