from pocketrank.device.strategies import AdSlots, Arranger, KeepBuffered, MinGap, Pin, Slate
from tests.device.strategies.pages import cloud_order, page_of, show_all

ITEMS = [1, 2, 3, 4]


def _slate(*rules: KeepBuffered | MinGap | Pin | AdSlots) -> Slate:
    slate = Arranger(rules).start()
    slate.take(page_of(ITEMS, {"ad": [0, 0, 0, 1]}), ITEMS)
    return slate


def test_buffered_items_are_shown_next_in_their_order() -> None:
    slate = _slate(KeepBuffered())
    slate.buffered({3: 100, 2: 50})
    assert show_all(slate, ITEMS) == [3, 2, 1, 4]
    assert slate.counters.discarded_buffer_items == 0


def test_a_rule_above_puts_an_item_before_it() -> None:
    slate = _slate(AdSlots(1, 1, 5), KeepBuffered())
    slate.buffered({3: 100, 2: 50})
    assert show_all(slate, ITEMS) == [3, 4, 2, 1]
    assert slate.counters.relaxed == {"KeepBuffered()": 1}
    assert slate.counters.discarded_buffer_items == 0


def test_buffered_items_that_a_new_page_lacks_are_counted_as_discarded() -> None:
    slate = _slate(KeepBuffered())
    slate.buffered({3: 100, 2: 50, 1: 7})
    slate.take(page_of([5, 2, 3]), [5, 2, 3])
    assert (slate.counters.discarded_buffer_items, slate.counters.discarded_buffer_bytes) == (1, 7)
    assert show_all(slate, [5, 2, 3]) == [3, 2, 5]


def test_items_that_the_player_dropped_are_counted_and_shown_ones_are_not() -> None:
    slate = _slate(KeepBuffered())
    slate.buffered({3: 100, 2: 50})
    assert slate.first(cloud_order(4)) == 2
    slate.show(2)
    slate.buffered({1: 10})
    slate.buffered({1: 20, 99: 5})
    assert (slate.counters.discarded_buffer_items, slate.counters.discarded_buffer_bytes) == (1, 50)


def test_the_cost_is_counted_without_the_rule_too() -> None:
    slate = _slate()
    slate.buffered({3: 100})
    assert show_all(slate, ITEMS, most=1) == [1]
    slate.take(page_of([7]), [7])
    assert slate.counters.discarded_buffer_bytes == 100
