import pytest

from pocketrank.device.strategies import AdSlots, Arranger, Cap, Conflict, Freshness, KeepBuffered, MinGap, PagePins, Pin, Rule
from tests.device.strategies.pages import page_of, show_all


@pytest.mark.parametrize(
    ("winner", "loser", "certain"),
    [
        (Pin(1, 3), Pin(2, 3), True),
        (Pin(1, 3), Pin(1, 4), True),
        (AdSlots(0, 1, 8), AdSlots(4, 5, 8), True),
        (AdSlots(0, 1, 8), AdSlots(1, 2, 8), False),
        (AdSlots(0, 1, 8), AdSlots(4, 5, 8, code=2), False),
        (AdSlots(3, 5, 8, code=1), MinGap("ad", 11), True),
        (AdSlots(3, 5, 8, code=1), MinGap("ad", 10), False),
        (AdSlots(3, 5, 8), MinGap("ad", 11), False),
        (Cap("ad", 2, 19, value=1), AdSlots(3, 5, 8), True),
        (Cap("ad", 2, 18, value=1), AdSlots(3, 5, 8), False),
        (Cap("ad", 2, "session"), AdSlots(3, 5, 8, code=1), True),
        (Cap("ad", 2, "page"), AdSlots(3, 5, 8, code=1), False),
        (Cap("ad", 0, 1), AdSlots(3, 5, 8, code=1), True),
        (AdSlots(3, 5, 8), MinGap("author", 3), False),
        (MinGap("author", 3), KeepBuffered(), False),
        (Pin(1, 3), PagePins(), False),
        (KeepBuffered(), Pin(1, 3), False),
    ],
)
def test_rules_that_may_conflict_are_reported(winner: Rule, loser: Rule, certain: bool) -> None:
    (conflict,) = Arranger([winner, Freshness(1.0), loser]).conflicts
    assert conflict[:3] == Conflict(winner.name, loser.name, certain, "")[:3]
    assert conflict.reason


@pytest.mark.parametrize(
    "pair",
    [
        (MinGap("author", 3), MinGap("category", 2)),
        (MinGap("author", 3), Cap("author", 1)),
        (Pin(1, 3), Pin(2, 4)),
        (Pin(1, 3), Pin(1, 3)),
        (KeepBuffered(), KeepBuffered()),
        (AdSlots(3, 5, 8), AdSlots(3, 5, 8)),
        (AdSlots(3, 5, 8), MinGap("ad", 6)),
        (AdSlots(3, 5, 8), Cap("ad", 2, 14)),
        (AdSlots(3, 5, 8, code=1), Cap("ad", 0, value=2)),
    ],
)
def test_rules_that_cannot_conflict_are_not_reported(pair: tuple[Rule, Rule]) -> None:
    assert Arranger(pair).conflicts == ()


@pytest.mark.parametrize(("gap", "relaxed"), [(10, {}), (11, {"MinGap(ad, 11)": 1})])
def test_a_conflict_is_certain_from_the_gap_that_slots_cannot_keep(gap: int, relaxed: dict[str, int]) -> None:
    """The first ad at the beginning of its slot, the second at the end of the next."""
    items, slots = list(range(20)), AdSlots(3, 5, 8, code=1)
    arranger = Arranger([slots, MinGap("ad", gap)])
    assert arranger.conflicts[0].certain == bool(relaxed)
    slate = arranger.start()
    slate.take(page_of(items, {"ad": [int(item < 2) for item in items]}), items)
    shown = show_all(slate, items)
    assert (shown.index(0), shown.index(1)) == (3, 13)
    assert slate.counters.relaxed == relaxed


def test_sessions_share_an_arranger_and_nothing_else() -> None:
    arranger = Arranger([MinGap("author", 2)])
    page = page_of([1, 2, 3], {"author": [4, 4, 5]})
    for _ in range(2):
        slate = arranger.start()
        slate.take(page, [1, 2, 3])
        assert show_all(slate, [1, 2, 3]) == [1, 3, 2]
        assert slate.counters.fired == {"MinGap(author, 2)": 1}
