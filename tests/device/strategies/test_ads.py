import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.device.strategies import AdSlots, Arranger, MinGap, PagePins, Pin
from tests.device.strategies.pages import cloud_order, page_of, show_all


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_slot_has_one_ad_where_one_is_held_at_its_end_and_nothing_else_has(data: st.DataObject) -> None:
    """Whatever rules are below, whichever pages come."""
    first, span = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 3))
    slots = AdSlots(first, first + span, data.draw(st.integers(span + 1, 6)))
    slate = Arranger([slots, Pin(3, 5), MinGap("author", 4)]).start()
    ads: list[bool] = []
    held_at: list[tuple[bool, bool]] = []  # an ad, and anything else
    for page in range(3):
        kinds = data.draw(st.lists(st.booleans(), min_size=1, max_size=8))
        items = list(range(page * 10, page * 10 + len(kinds)))
        authors = data.draw(st.lists(st.integers(1, 2), min_size=len(kinds), max_size=len(kinds)))
        slate.take(page_of(items, {"ad": [int(kind) for kind in kinds], "author": authors}), items)
        left = dict(zip(items, kinds, strict=True))
        for _ in range(data.draw(st.integers(0, len(items)))):
            held_at.append((any(left.values()), not all(left.values())))
            index = slate.first(cloud_order(len(left)))
            assert index is not None
            slate.show(index)
            ads.append(left.pop(list(left)[index]))
    for start in range(first, len(ads), slots.every):
        slot = range(start, start + span + 1)
        if slot[-1] < len(ads) and held_at[slot[-1]][0]:
            assert any(ads[p] for p in slot)
    for p, is_ad in enumerate(ads):
        start = p - (p - first) % slots.every
        outside = p < first or p > start + span or any(ads[start:p])
        assert not (is_ad and outside and held_at[p][1])


def _shown(*rules: Pin | PagePins | AdSlots, ads: list[int], pins: list[int] | None = None) -> tuple[list[int], dict[str, int]]:
    slate, items = Arranger(rules).start(), list(range(len(ads)))
    slate.take(page_of(items, {"ad": ads, "pin": pins or [0] * len(ads)}), items)
    return show_all(slate, items), dict(slate.counters.relaxed)


def test_an_ad_is_demanded_earlier_where_pins_fill_the_rest_of_the_slot() -> None:
    slots = AdSlots(1, 3, 10)
    assert _shown(Pin(2, 2), Pin(3, 3), slots, ads=[0, 0, 0, 0, 0, 1]) == ([0, 5, 2, 3, 1, 4], {})
    assert _shown(PagePins(), slots, ads=[0, 0, 0, 0, 0, 1], pins=[0, 0, 4, 0, 0, 0]) == ([0, 1, 5, 2, 3, 4], {})


def test_a_slot_that_pins_fill_is_counted_once() -> None:
    slots = AdSlots(1, 2, 3)
    assert _shown(Pin(1, 1), Pin(2, 2), slots, ads=[0, 0, 0, 0, 1]) == ([0, 1, 2, 3, 4], {slots.name: 1})


def test_an_ad_that_is_pinned_in_the_slot_is_the_slots() -> None:
    shown, relaxed = _shown(Pin(5, 3), AdSlots(1, 3, 4), ads=[1, 0, 0, 0, 0, 1, 0, 0])
    assert shown == [1, 2, 3, 5, 4, 0, 6, 7]
    assert relaxed == {}


def test_of_two_pins_for_one_position_the_slot_goes_by_the_one_above() -> None:
    shown, _ = _shown(Pin(3, 1), Pin(2, 1), AdSlots(0, 1, 9), ads=[1, 0, 0, 1])
    assert shown[:2] == [1, 3]
    shown, _ = _shown(Pin(2, 1), Pin(3, 1), AdSlots(0, 1, 9), ads=[1, 0, 0, 1])
    assert shown[:2] == [0, 2]


def test_a_slot_that_pins_fill_is_relaxed_at_its_last_position() -> None:
    slots, items = AdSlots(1, 2, 3), list(range(5))
    slate = Arranger([Pin(1, 1), Pin(2, 2), slots]).start()
    slate.take(page_of(items, {"ad": [0, 0, 0, 0, 1]}), items)
    relaxed = []
    for _ in range(3):
        index = slate.first(cloud_order(5 - slate.position))
        assert index is not None
        assert slate.decision is not None
        relaxed.append(slate.decision.relaxed)
        slate.show(index)
    assert relaxed == [(), (), (slots.name,)]


def test_another_ad_takes_the_position_of_a_pinned_one_that_was_shown_before() -> None:
    items = list(range(6))
    slate = Arranger([Pin(4, 2), AdSlots(1, 3, 9)]).start()
    slate.take(page_of(items, {"ad": [0, 0, 0, 0, 1, 1]}), items)
    slate.show(4)
    assert show_all(slate, [0, 1, 2, 3, 5]) == [0, 5, 1, 2, 3]


def test_a_slot_without_an_ad_is_counted() -> None:
    assert _shown(AdSlots(1, 2, 10), ads=[0, 0, 0, 0]) == ([0, 1, 2, 3], {"AdSlots(1, 2, 10, ad, None)": 1})


def test_only_ads_of_the_code() -> None:
    shown, _ = _shown(AdSlots(1, 1, 2, code=2), ads=[2, 1, 1, 2])
    assert shown == [1, 0, 2, 3]


@pytest.mark.parametrize(("first", "last", "every"), [(-1, 2, 5), (3, 2, 5), (0, 5, 5)])
def test_slots_that_overlap_are_refused(first: int, last: int, every: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= first <= last < first \\+ every"):
        AdSlots(first, last, every)
