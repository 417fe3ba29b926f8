from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.remaining import Remaining
from tests.device.worlds import SPEC, make_page

BUILD = FeatureBuilder(SPEC)


@given(st.integers(1, 9), st.integers(0, 12), st.data())
def test_what_remains_is_packed_in_cloud_order_with_its_own_features(n: int, rows: int, data: st.DataObject) -> None:
    page = BUILD.page(make_page(list(range(100, 100 + n))))
    held, left = Remaining(page, rows), list(range(n))
    assert held.floats.shape[1] >= max(n, rows)
    while left:
        index = data.draw(st.integers(0, len(left) - 1))
        assert held.take(index) == left.pop(index)
        assert held.count == len(left)
        assert held.item_id[: held.count].tolist() == [100 + row for row in left]
        assert held.vector is not None
        assert page.vector is not None
        np.testing.assert_array_equal(held.floats[0, : held.count], page.floats[left])
        np.testing.assert_array_equal(held.categories[0, : held.count], page.categories[left])
        np.testing.assert_array_equal(held.vector[0, : held.count], page.vector[left])
        for array in (held.floats, held.categories, held.vector):
            assert not array[0, held.count :].any()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.data())
def test_equal_candidates_are_known_as_such(groups: list[int], data: st.DataObject) -> None:
    """By the features that the model reads, of which -0 is 0, and among what is left."""
    page = BUILD.page(make_page(list(range(len(groups)))))
    floats = np.array([[0.0, 0.5, 1.0], [0.0, 0.5, 0.25], [0.0, 0.5, 1.0]], np.float32)[groups]
    floats[::2, 0] = -0.0
    assert page.vector is not None
    vector = np.repeat(np.array([[1], [1], [2]], np.float32)[groups], page.vector.shape[1], axis=1)
    page = replace(page, floats=floats, categories=np.full_like(page.categories, 3), vector=vector)
    for split in (True, False):
        kinds = groups if split else [group % 2 for group in groups]  # without vectors the first is like the last
        held, left = Remaining(page if split else page.without_vectors(), 12), list(range(len(groups)))
        while left:
            count = data.draw(st.integers(1, len(left)))
            kept = [kinds[row] for row in left[:count]]
            expected = [kept.index(kind) for kind in kept]
            got = held.alike(count)
            assert (list(range(count)) if got is None else got.tolist()) == expected
            copied = held.copy().alike(count)
            assert (list(range(count)) if copied is None else copied.tolist()) == expected
            left.remove(held.take(data.draw(st.integers(0, len(left) - 1))))


def test_one_feature_that_differs_everywhere_leaves_none_equal() -> None:
    page = BUILD.page(make_page([1, 2, 3]))
    for column in (0, 2):
        floats = np.ones_like(page.floats)
        floats[:, column] = [1, 2, 3]
        assert Remaining(replace(page, floats=floats).without_vectors(), 0).alike(3) is None


def test_find() -> None:
    held = Remaining(BUILD.page(make_page([7, 8, 9])), 0)
    assert held.find(8) == 1
    held.take(1)
    assert held.find(8) is None
    assert held.find(9) == 1
    held.take(1)
    assert held.find(9) is None


@given(st.data())
def test_a_copy_holds_the_same_and_shares_nothing(data: st.DataObject) -> None:
    held = Remaining(BUILD.page(make_page(list(range(100, 108)))), 12)
    for _ in range(data.draw(st.integers(0, 7))):
        held.take(data.draw(st.integers(0, held.count - 1)))
    n = held.count
    if data.draw(st.booleans()):
        held.attach(np.arange(2 * n, dtype=np.float32).reshape(n, 2))
    copy = held.copy()
    assert copy.count == n
    assert copy.row[:n].tolist() == held.row[:n].tolist()
    kept = {name: getattr(held, name) for name in ("item_id", "floats", "categories", "vector", "state")}
    for name, array in kept.items():
        own = getattr(copy, name)
        assert (own is None) == (array is None)
        if array is not None:
            assert not np.shares_memory(own, array)
            np.testing.assert_array_equal(
                own[:n] if name == "item_id" else own[:, :n], array[:n] if name == "item_id" else array[:, :n]
            )


def test_the_page_itself_is_left_alone() -> None:
    page = BUILD.page(make_page([1, 2, 3]))
    before = page.floats.copy()
    Remaining(page, 8).take(0)
    np.testing.assert_array_equal(page.floats, before)
    assert page.item_id.tolist() == [1, 2, 3]
