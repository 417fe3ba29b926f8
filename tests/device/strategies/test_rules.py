"""Pins, gaps, caps and freshness by example; any company of them is in `test_slate`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pocketrank.device.strategies import Arranger, Cap, Freshness, MinGap, PagePins, Pin
from tests.device.strategies.pages import cloud_order, page_of, show_all


def _shown(strategy: Any, items: list[int], **columns: list[int]) -> list[int]:
    slate = Arranger([strategy]).start()
    slate.take(page_of(items, columns), items)
    return show_all(slate, items)


def test_a_pinned_item_is_at_its_position_and_not_before() -> None:
    assert _shown(Pin(1, 2), [1, 2, 3, 4]) == [2, 3, 1, 4]
    assert _shown(Pin(4, 0), [1, 2, 3, 4]) == [4, 1, 2, 3]


def test_a_pin_of_an_item_that_is_not_held_is_relaxed_at_its_position() -> None:
    slate = Arranger([Pin(9, 1)]).start()
    slate.take(page_of([1, 2, 3]), [1, 2, 3])
    assert show_all(slate, [1, 2, 3]) == [1, 2, 3]
    assert slate.counters.relaxed == {"Pin(9, 1)": 1}


def test_places_that_are_no_numbers_pin_nothing() -> None:
    slate = Arranger([PagePins()]).start()
    slate.take(page_of([1, 2, 3, 4], floats={"pin": [float("inf"), float("nan"), 1.0, 1e30]}), [1, 2, 3, 4])
    assert show_all(slate, [1, 2, 3, 4]) == [3, 1, 2, 4]
    assert not slate.counters.failed


def test_pins_of_a_page_count_from_its_first_impression() -> None:
    slate = Arranger([PagePins()]).start()
    slate.take(page_of([1, 2]), [1, 2])
    show_all(slate, [1, 2], most=1)
    slate.take(page_of([3, 4, 5, 6], {"pin": [2, 0, 1, 1]}), [3, 4, 5, 6])
    assert show_all(slate, [3, 4, 5, 6]) == [5, 3, 4, 6]


def test_neighbours_differ_across_pages_too() -> None:
    slate = Arranger([MinGap("category", 2)]).start()
    slate.take(page_of([1, 2], {"category": [7, 8]}), [1, 2])
    show_all(slate, [1, 2], most=1)
    slate.take(page_of([3, 4, 5], {"category": [7, 7, 8]}), [3, 4, 5])
    assert show_all(slate, [3, 4, 5]) == [5, 3, 4]
    assert slate.counters.relaxed == {"MinGap(category, 2)": 1}


def test_unknown_authors_are_not_one_author() -> None:
    assert _shown(MinGap("author", 9), [1, 2, 3], author=[0, 0, 0]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        (Cap("author", 2, 3), [1, 2, 5, 3, 4]),
        (Cap("author", 1, "page"), [1, 5, 2, 3, 4]),
        (Cap("author", 3, "session"), [1, 2, 3, 5, 4]),
        (Cap("author", 0, "page", value=9), [5, 1, 2, 3, 4]),
        (Cap("author", 0, 1, value=4), [1, 2, 3, 4, 5]),
    ],
)
def test_caps(cap: Cap, expected: list[int]) -> None:
    assert _shown(cap, [1, 2, 3, 4, 5], author=[9, 9, 9, 9, 8]) == expected


def test_a_cap_of_the_session_outlasts_the_page() -> None:
    for within, expected in (("session", 1), ("page", 0)):
        slate = Arranger([Cap("author", 1, within)]).start()  # type: ignore[arg-type]
        slate.take(page_of([1], {"author": [9]}), [1])
        slate.show(0)
        slate.take(page_of([2, 3], {"author": [9, 8]}), [2, 3])
        assert slate.first(cloud_order(2)) == expected


def test_new_items_get_a_head_start_that_halves() -> None:
    slate = Arranger([Freshness(2.0, weight=0.5)]).start()
    ages = [float("nan"), 4.0, 0.0, -1.0, float("inf")]
    slate.take(page_of([1, 2, 3, 4, 5], floats={"age": ages}), [1, 2, 3, 4, 5])
    # worth 0, .125, .5, .5, 0 of a spread of 10
    assert slate.order(cloud_order(5), np.array([10.0, 9.0, 6.0, 1.0, 0.0])).tolist() == [2, 1, 0, 3, 4]
    slate.take(page_of([6]), [6])
    assert slate.counters.column_missing == {"Freshness(2.0, age, 0.5)": 1}


def test_a_negative_age_counts_as_new_and_not_as_more_than_that() -> None:
    slate = Arranger([Freshness(2.0, weight=0.5)]).start()
    slate.take(page_of([1, 2, 3], floats={"age": [0.0, -2.0, 0.0]}), [1, 2, 3])
    assert slate.order(cloud_order(3), np.array([1.0, 0.9, 0.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pin(1, -1),
        lambda: MinGap("author", 0),
        lambda: Cap("author", -1),
        lambda: Cap("author", 1, 0),
        lambda: Cap("author", 1, "day"),  # type: ignore[arg-type]
        lambda: Freshness(0.0),
        lambda: Freshness(1.0, weight=float("inf")),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()
