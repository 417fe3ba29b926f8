import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.reranking.spread import spread_categories


def test_each_category_gets_its_share_before_the_next_round() -> None:
    order = spread_categories(np.array([7, 7, 7, 2, 7, 2, 0]), 2)
    assert order.tolist() == [0, 1, 3, 5, 6, 2, 4]


@given(st.lists(st.integers(0, 5)), st.integers(1, 4))
def test_nothing_is_lost_and_no_prefix_is_crowded(codes: list[int], most: int) -> None:
    category = np.array(codes, np.int64)
    order = spread_categories(category, most)
    assert sorted(order.tolist()) == list(range(len(codes)))
    for code in set(codes):
        mine = order[category[order] == code]
        assert mine.tolist() == sorted(mine.tolist())
    first_round = sum(min(most, codes.count(code)) for code in set(codes))
    assert all((category[order[:first_round]] == code).sum() <= most for code in set(codes))
