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
