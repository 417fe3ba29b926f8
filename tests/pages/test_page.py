import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from pocketrank.device.codec import from_json, from_msgpack, read_page, to_json, to_msgpack
from pocketrank.device.contract import Page, PageRequest
from pocketrank.device.contract.ids import id_code
from pocketrank.pages import PageError, make_page

NAN = float("nan")
ITEMS = [11, 12, 13]
SCORES = {"like": [0.3, NAN, 0.1], "long_view": np.array([0.5, 0.25, 1], np.float32)}


def request(**changes: Any) -> PageRequest:
    fields = {"request_id": "r-1", "user_id": 7, "session_id": "s-1", "now_ms": 1_700_000_000_000, "size": 10}
    return PageRequest(**(fields | changes))


def make(**changes: Any) -> Page:
    arguments = {"request": request(), "items": ITEMS, "scores": SCORES} | changes
    return make_page(arguments.pop("request"), arguments.pop("items"), arguments.pop("scores"), **arguments)


def test_a_page_holds_all_columns_of_its_items() -> None:
    page = make(
        floats={"duration_ms": [15_000, NAN, 60_000], "fresh": [True, False, True]},
        categories={"category": np.array([3, 0, 9], np.uint8), "author": [1, 2, (1 << 31) - 1]},
        numbering="c0de",
        ttl_ms=1000,
        price=2.5,
        degraded=("no_feedback",),
        page_id="p-1",
    )
    columns = read_page(page)
    assert (page.page_id, page.request_id, page.created_ms, page.ttl_ms) == ("p-1", "r-1", 1_700_000_000_000, 1000)
    assert (page.compute_price, page.degraded) == (2.5, ("no_feedback",))
    assert columns.item_id.tolist() == ITEMS
    assert page.candidates.floats.names == ("pxtr_like", "pxtr_long_view", "duration_ms", "fresh")
    np.testing.assert_array_equal(
        columns.floats, np.array([[0.3, 0.5, 15_000, 1], [NAN, 0.25, NAN, 0], [0.1, 1, 60_000, 1]], np.float32)
    )
    assert page.candidates.categories.names == ("category", "author")
    assert (page.candidates.numbering, make().candidates.numbering) == ("c0de", UNSET)
    assert columns.categories.tolist() == [[3, 1], [0, 2], [9, (1 << 31) - 1]]
    assert from_msgpack(to_msgpack(page), Page) == page == from_json(to_json(page), Page)


def test_pages_have_ids_of_their_own() -> None:
    assert make().page_id != make().page_id


@given(
    items=st.lists(st.integers(-(1 << 63), (1 << 63) - 1), unique=True, max_size=30),
    shown=st.lists(st.integers(0, 40), max_size=10),
    size=st.integers(1, 40),
)
def test_what_was_shown_is_left_out_and_the_first_of_the_rest_are_sent(items: list[int], shown: list[int], size: int) -> None:
    exclude = (*(items[at] for at in shown if at < len(items)), 5, -5)
    scores = {"like": np.arange(len(items)) / 100}
    made = read_page(make_page(request(size=size, exclude=exclude), items, scores))
    expected = [item for item in items if item not in exclude][:size]
    assert made.item_id.tolist() == expected
    np.testing.assert_allclose(made.floats[:, 0] * 100, [items.index(item) for item in expected], rtol=1e-6)


def test_a_page_may_be_empty() -> None:
    page = make(items=[], scores={"like": []}, vectors=np.zeros((0, 4)), user_vector=np.zeros(4), split_version="v")
    assert read_page(page).floats.shape == (0, 1)
    assert read_page(make(scores={})).floats.shape == (3, 0)


@pytest.mark.parametrize("items", [["a", "b", "ü"], np.array(["a", "b", "ü"])])
def test_texts_go_by_their_codes(items: Any) -> None:
    assert read_page(make(items=items)).item_id.tolist() == [id_code(text) for text in "abü"]
    page = make(items=items, request=request(exclude=(id_code("b"),)))
    assert read_page(page).item_id.tolist() == [id_code("a"), id_code("ü")]


@pytest.mark.parametrize(
    ("items", "own_ids", "keys"),
    [
        (["a", "b", "c"], UNSET, ("a", "c")),
        (["a", "b", "c"], True, ("a", "c")),
        (["a", "b", "c"], False, UNSET),
        ([11, 12, 13], UNSET, UNSET),
        ([11, 12, 13], True, ("11", "13")),
        ([11, 12, 13], False, UNSET),
    ],
)
def test_a_page_has_own_ids_where_they_are_wanted(items: list[Any], own_ids: Any, keys: Any) -> None:
    exclude = (12, id_code("b"))
    page = make(items=items, request=request(exclude=exclude, own_ids=own_ids))
    assert page.candidates.item_key == keys
    assert len(read_page(page).item_id) == 2
    text = {"dtype": "text", "shape": [2], "data": ["a", "c"]}
    if keys == ("a", "c"):
        assert json.loads(to_json(page))["candidates"]["item_id"] == text


VECTORS = {"vectors": np.arange(12.0).reshape(3, 4), "user_vector": np.ones(4), "split_version": "v1"}


def test_vectors_travel_with_their_version() -> None:
    page = make(request=request(split_version="v1", exclude=(12,)), **VECTORS)
    columns = read_page(page)
    assert columns.vector is not None
    assert columns.vector.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert columns.user_vector is not None
    assert columns.user_vector.tolist() == [1, 1, 1, 1]
    assert (page.split_version, page.split_reason) == ("v1", None)


@pytest.mark.parametrize(
    ("asked", "given", "reason"),
    [
        (None, VECTORS, "not asked for"),
        ("v2", VECTORS, "unknown split version v2"),
        ("v" * 100, VECTORS, f"unknown split version {'v' * 64}"),
        ("v1", {}, "unknown split version v1"),
        ("v1", {"split_version": "v1"}, "vectors are temporarily unavailable"),
    ],
)
def test_a_page_without_vectors_says_why(asked: str | None, given: dict[str, Any], reason: str) -> None:
    page = make(request=request(split_version=asked), **given)
    assert (page.candidates.vector, page.user_vector, page.split_version) == (None, None, None)
    assert page.split_reason == reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": [11, 12, 11]}, "Expected each item once, got 11 as at items[0] - at `items[2]`. Merge the channels"),
        ({"items": ["a", "b", "b"]}, "Expected each item once, got 'b' as at items[1] - at `items[2]`"),
        ({"items": [11, 1 << 63, 13]}, "64 bits with sign, got 9223372036854775808 - at `items[1]`. Give larger"),
        ({"items": [11, 12.0, 13]}, "Expected a text, or a whole number of 64 bits with sign, got 12.0 - at `items[1]`"),
        ({"items": [11, None, 13]}, "got None - at `items[1]`"),
        ({"items": ["a", "", "c"]}, "Expected an id of 1 to 256 characters, got 0 characters - at `items[1]`"),
        ({"scores": {"like": [0.1, 0.2]}}, "Expected [3], got [2] - at `scores.like`. Give every column the same rows"),
        ({"scores": {"like": [[0.1], [0.2], [0.3]]}}, "Expected [3], got [3, 1] - at `scores.like`"),
        ({"scores": {"like": [0.1, [0.2], 0.3]}}, "Expected numbers [3], got "),
        ({"scores": {"like": ["0.1", "0.2", "0.3"]}}, "Expected numbers [3], got <U3 [3] - at `scores.like`"),
        ({"scores": {"like": [0.1, 1.5, 0.3]}}, "a probability from 0 to 1, or NaN, got 1.5 - at `scores.like[1]`. Apply a"),
        ({"scores": {"like": [0.1, 0.2, -0.1]}}, "got -0.1 - at `scores.like[2]`"),
        ({"scores": {"like": [0.1, np.inf, 0.3]}}, "got inf - at `scores.like[1]`"),
        ({"scores": {"pxtr_like": [0.1, 0.2, 0.3]}}, "the name of a task, got `pxtr_like` - at `scores.pxtr_like`. Call"),
        ({"floats": {"pxtr_like": [0.1, 0.2, 0.3]}}, "Expected a static attribute, got `pxtr_like`"),
        ({"floats": {"age": [1, 2]}}, "Expected [3], got [2] - at `floats.age`"),
        ({"floats": {"age": [1, np.inf, 2]}}, "fits a float32, or NaN where unknown, got inf - at `floats.age[1]`"),
        ({"floats": {"age": [1, 2, 1e39]}}, "got 1e+39 - at `floats.age[2]`"),
        ({"categories": {"author": [1.0, 2.0, 3.0]}}, "Expected whole numbers, got float64 - at `categories.author`. Convert"),
        ({"categories": {"author": [1, -1, 2]}}, "from 0 (unknown) to 2147483647, got -1 - at `categories.author[1]`"),
        ({"categories": {"author": [1, 2, 1 << 31]}}, "got 2147483648 - at `categories.author[2]`"),
        ({**VECTORS, "vectors": None}, "`user_vector` and `split_version` together, got nothing - at `vectors`"),
        ({**VECTORS, "user_vector": None}, "at `user_vector`"),
        ({**VECTORS, "split_version": None}, "at `split_version`"),
        ({**VECTORS, "vectors": np.ones((2, 4))}, "Expected floats [3, D], got float64 [2, 4] - at `vectors`"),
        ({**VECTORS, "vectors": np.ones((3, 4), int)}, "Expected floats [3, D], got int64 [3, 4] - at `vectors`"),
        ({**VECTORS, "user_vector": np.ones(5)}, "Expected floats [4], got float64 [5] - at `user_vector`"),
        ({**VECTORS, "user_vector": np.array([1, 2, NAN, 4])}, "and no NaN, got nan - at `user_vector[2]`"),
        ({**VECTORS, "vectors": np.full((3, 4), 7e4)}, "up to 65504 in size, and no NaN, got 70000.0 - at `vectors[0, 0]`"),
        ({"price": 0}, "Expected a positive number, 1.0 for normal load, got 0 - at `price`"),
        ({"price": NAN}, "got nan - at `price`"),
        ({"ttl_ms": 0}, "Expected at least 1 ms, got 0 - at `ttl_ms`"),
    ],
)  # fmt: skip
def test_what_is_no_page_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PageError) as refused:
        make(**changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
