"""Every rule in any company, against what it says: judged one candidate at a time from the whole history."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.device.codec import to_block
from pocketrank.device.contract import Columns
from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.strategies import (
    DPP,
    MMR,
    AdSlots,
    Arranger,
    Bonus,
    Cap,
    Facts,
    Freshness,
    KeepBuffered,
    MinGap,
    PagePins,
    Pin,
    Preference,
    Rule,
    Test,
)
from tests.device.strategies.pages import cloud_order, page_of, show_all
from tests.device.worlds import SPEC

COLUMNS = ("author", "category", "ad", "pin")


@dataclass
class Session:
    """What happened, as plain data."""

    history: list[dict[str, int]] = field(default_factory=list)
    page: dict[int, dict[str, int]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    start: int = 0
    held: list[int] = field(default_factory=list)
    buffer: list[int] = field(default_factory=list)
    lost: int = 0

    @property
    def position(self) -> int:
        return len(self.history)

    def show(self, item: int) -> None:
        self.held.remove(item)
        self.buffer = [other for other in self.buffer if other != item]
        self.history.append({name: self.page[item][name] for name in self.columns})


def due(rule: Rule, session: Session) -> dict[int, int | None]:
    """Position → the item that a rule wants there; None is an item that the page never had."""
    if isinstance(rule, Pin) and session.start <= rule.position:
        return {rule.position: rule.item_id if rule.item_id in session.page else None}
    places: dict[int, int | None] = {}
    if isinstance(rule, PagePins) and rule.column in session.columns:
        for item, row in session.page.items():
            if row[rule.column] > 0:
                places.setdefault(session.start + row[rule.column] - 1, item)
    return places


def breaks(rule: Rule, item: int, session: Session, above: Sequence[Rule]) -> bool:
    position, row = session.position, session.page[item]
    if isinstance(rule, KeepBuffered):
        return bool(session.buffer) and session.buffer[0] != item
    if isinstance(rule, Pin | PagePins):
        places = due(rule, session)
        if position in places:
            return places[position] != item
        return any(at > position and wanted == item for at, wanted in places.items())
    assert isinstance(rule, MinGap | Cap | AdSlots)
    if rule.column not in session.columns:
        return False
    code, codes = row[rule.column], [shown.get(rule.column, 0) for shown in session.history]
    if isinstance(rule, MinGap):
        return code != 0 and any(codes[-d] == code for d in range(1, rule.gap) if d <= len(codes))
    if isinstance(rule, Cap):
        since = {"page": session.start, "session": 0}.get(str(rule.within))
        if since is None:
            since = max(0, position + 1 - int(rule.within))
        return code != 0 and rule.value in (None, code) and sum(c == code for c in codes[since:]) >= rule.max_items
    return ads_break(rule, code, codes, session, above)


def ads_break(rule: AdSlots, code: int, codes: list[int], session: Session, above: Sequence[Rule]) -> bool:
    def is_ad(code: int) -> bool:
        return code != 0 and rule.code in (None, code)

    position, begin = session.position, rule.first
    while begin + rule.every <= position:
        begin += rule.every
    slot = range(begin, begin + rule.last - rule.first + 1)
    if position not in slot or any(is_ad(codes[p]) for p in slot if p < position):
        return is_ad(code)
    pins: dict[int, bool] = {}  # position → whether an ad is pinned there
    for other in above:
        for at, item in due(other, session).items():
            if item is not None:
                pins.setdefault(at, is_ad(session.page[item][rule.column]))
    promised = [p for p in slot if pins.get(p)]
    if promised and position <= promised[0]:
        return is_ad(code) != (position == promised[0])
    free = [p for p in slot if p not in pins]
    return position == (free or list(slot))[-1] and not is_ad(code)


rules = st.one_of(
    st.builds(Pin, st.integers(0, 30), st.integers(0, 12)),
    st.just(PagePins()),
    st.just(KeepBuffered()),
    st.builds(MinGap, st.sampled_from(COLUMNS), st.integers(1, 5)),
    st.builds(
        Cap,
        st.sampled_from(COLUMNS),
        st.integers(0, 3),
        st.sampled_from([1, 3, 6, "page", "session"]),
        st.sampled_from([None, None, 1, 2]),
    ),
    st.integers(0, 4).flatmap(
        lambda first: st.integers(0, 3).flatmap(
            lambda span: st.builds(
                AdSlots, st.just(first), st.just(first + span), st.integers(span + 1, 7), code=st.sampled_from([None, None, 2])
            )
        )
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(rules, max_size=6), st.data())
def test_what_is_shown_breaks_only_what_no_held_candidate_keeps(listed: list[Rule], data: st.DataObject) -> None:
    """For any rules, pages, orders, buffers and impressions out of turn."""
    slate, session, next_item = Arranger(listed).start(), Session(), 0
    relaxed = 0
    for act in data.draw(st.lists(st.sampled_from(["page", "next", "next", "next", "buffer", "elsewhere"]), max_size=25)):
        if act == "page" or not session.page:
            count = data.draw(st.integers(1, 8))
            old = data.draw(st.lists(st.sampled_from(session.held), unique=True)) if session.held else []
            items = data.draw(st.permutations([*old, *range(next_item, next_item + count)]))
            next_item += count
            session.columns = data.draw(st.sampled_from([COLUMNS, COLUMNS, COLUMNS[:2], ()]))
            codes = {name: data.draw(st.lists(st.integers(0, 3), min_size=len(items), max_size=len(items))) for name in COLUMNS}
            session.page = {item: {name: codes[name][row] for name in COLUMNS} for row, item in enumerate(items)}
            session.lost += sum(item not in items for item in session.buffer)
            session.buffer = [item for item in session.buffer if item in items]
            session.held, session.start = list(items), session.position
            slate.take(page_of(items, {name: codes[name] for name in session.columns}), items)
        elif act == "buffer":
            items = data.draw(st.lists(st.sampled_from([*session.held, -1]), unique=True, max_size=3))
            slate.buffered(dict.fromkeys(items, 10))
            session.lost += sum(item not in items for item in session.buffer)
            session.buffer = [item for item in items if item != -1]
        elif act == "elsewhere" and session.held:
            index = data.draw(st.integers(0, len(session.held) - 1))
            slate.show(index)
            session.show(session.held[index])
        else:
            order = np.array(data.draw(st.permutations(range(len(session.held)))), np.intp)
            whole = slate.order(order)
            assert sorted(whole.tolist()) == list(range(len(session.held)))
            index = slate.first(order)
            if not session.held:
                assert index is None
                continue
            assert index == whole[0]
            broken = [
                [breaks(rule, session.held[i], session, listed[:at]) for at, rule in enumerate(listed)] for i in order.tolist()
            ]
            best = min(range(len(broken)), key=lambda i: (broken[i], i))
            assert index == order[best]
            decision = slate.decision
            assert decision is not None
            assert (decision.position, decision.item_id) == (session.position, session.held[index])
            assert decision.model_item_id == session.held[order[0]]
            assert list(decision.relaxed) == [rule.name for rule, b in zip(listed, broken[best], strict=True) if b]
            assert [item for item, _ in decision.held_back] == [session.held[i] for i in order[:best]]
            relaxed += len(decision.relaxed)
            slate.show(index)
            session.show(session.held[index])
        assert slate.position == session.position
    assert slate.counters.relaxed.total() == relaxed
    assert slate.counters.discarded_buffer_items == session.lost
    assert slate.counters.discarded_buffer_bytes == 10 * session.lost
    assert not slate.counters.failed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(rules, st.sampled_from([MMR(), DPP(0.5), Freshness(1.0)])), max_size=5),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.booleans(),
)
def test_the_whole_order_is_what_one_by_one_is_shown(
    listed: list[Any], count: int, seed: int, with_vectors: bool, with_scores: bool
) -> None:
    rng = np.random.default_rng(seed)
    items = list(range(count))
    codes = {name: rng.integers(0, 4, count).tolist() for name in COLUMNS}
    vectors = rng.normal(size=(count, 3)) if with_vectors else None
    page = page_of(items, codes, {"age": rng.random(count).tolist()}, vectors)
    slate = Arranger(listed).start()
    slate.take(page, items)
    slate.buffered(dict.fromkeys(rng.permutation(items)[:2].tolist(), 1))
    scores = np.sort(rng.random(count))[::-1] if with_scores else None
    planned = slate.order(cloud_order(count), scores).tolist()
    assert show_all(slate, items, scores=scores) == planned


def test_without_strategies_the_order_is_the_models() -> None:
    slate = Arranger([]).start()
    slate.take(page_of([5, 6, 7]), [5, 6, 7])
    order = np.array([2, 0, 1])
    assert slate.order(order, np.array([0.1, 0.0, 0.9])).tolist() == [2, 0, 1]
    assert slate.first(order) == 2
    assert slate.decision is not None
    assert (slate.decision.item_id, slate.decision.model_item_id, slate.decision.held_back) == (7, 7, ())


def test_a_decision_says_why_and_counts_when_it_is_shown() -> None:
    slate = Arranger([MinGap("author", 2), Pin(8, 2)]).start()
    slate.take(page_of([5, 6, 7, 8], {"author": [1, 1, 2, 2]}), [5, 6, 7, 8])
    slate.first(cloud_order(4))
    slate.first(cloud_order(4))
    slate.show(0)
    assert not slate.counters.fired
    assert slate.first(cloud_order(3)) == 1
    assert slate.decision is not None
    assert slate.decision.held_back == ((6, "MinGap(author, 2)"),)
    slate.show(1)
    assert slate.first(cloud_order(2)) == 0  # the gap is above the pin
    assert slate.decision.relaxed == ("Pin(8, 2)",)
    slate.show(0)
    assert (slate.counters.fired, slate.counters.relaxed) == ({"MinGap(author, 2)": 1}, {"Pin(8, 2)": 1})
    assert slate.counters.sums() == {
        "strategies_fired": 1,
        "strategies_relaxed": 1,
        "strategies_column_missing": 0,
        "strategies_failed": 0,
        "discarded_buffer_items": 0,
        "discarded_buffer_bytes": 0,
    }


def test_what_was_decided_for_another_page_does_not_count() -> None:
    slate = Arranger([Pin(6, 0)]).start()
    slate.take(page_of([5, 6]), [5, 6])
    assert slate.first(cloud_order(2)) == 1
    slate.take(page_of([7, 8]), [7, 8])
    slate.show(1)
    assert not slate.counters.fired
    assert slate.decision is not None
    assert slate.decision.item_id == 6


# ------------------------------------------------------------------------------------------------------- an app's own rules


@dataclass(frozen=True)
class NoLongAfterLong(Rule):
    long_ms: float = 60_000

    def test(self, facts: Facts) -> Test | None:
        duration, shown = facts.values("duration_ms"), facts.shown("duration_ms")
        if duration is None:
            return None
        long = [d is not None and d > self.long_ms for d in duration]
        return lambda row, position: not (long[row] and shown and (shown[-1] or 0) > self.long_ms)


def test_a_rule_of_ones_own_is_one_method() -> None:
    slate = Arranger([NoLongAfterLong()]).start()
    slate.take(page_of([1, 2, 3, 4], floats={"duration_ms": [90_000, 80_000, 5_000, float("nan")]}), [1, 2, 3, 4])
    assert show_all(slate, [1, 2, 3, 4]) == [1, 3, 2, 4]
    slate.take(page_of([5, 6]), [5, 6])
    assert slate.counters.column_missing == {"NoLongAfterLong(60000)": 1}


class Broken(Rule):
    """Fails from its second test on, or at once."""

    def __init__(self, at: int) -> None:
        self.at = at

    def test(self, facts: Facts) -> Test | None:
        calls = iter(range(self.at))
        if not self.at:
            raise RuntimeError
        return lambda row, position: next(calls) < 0


class BrokenBonus(Preference):
    """Of a shape that does not fit, or failing once something is shown."""

    weight = 1.0

    def __init__(self, width: int) -> None:
        self.width = width

    def bonus(self, facts: Facts) -> Bonus | None:
        class Fails(Bonus):
            def show(self, row: int) -> None:
                raise RuntimeError

        return Fails(np.arange(self.width, dtype=float))


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_rule_that_raises_is_left_out_for_the_page(at: int) -> None:
    slate = Arranger([Broken(at), MinGap("author", 2)]).start()
    slate.take(page_of([1, 2, 3], {"author": [4, 4, 5]}), [1, 2, 3])
    assert show_all(slate, [1, 2, 3]) == [1, 3, 2]
    assert slate.counters.failed == {"Broken()": 1}


@pytest.mark.parametrize(("width", "expected"), [(2, [1, 2, 3]), (3, [3, 1, 2])])
def test_a_preference_that_raises_is_left_out_for_the_page(width: int, expected: list[int]) -> None:
    slate = Arranger([BrokenBonus(width)]).start()
    slate.take(page_of([1, 2, 3]), [1, 2, 3])
    assert show_all(slate, [1, 2, 3]) == expected
    assert slate.counters.failed == {"BrokenBonus()": 1}


# ----------------------------------------------------------------------------------------------------------------- bad data

HOSTILE = [0.0, 1.0, float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 5e-324]
EVERYTHING = [
    Pin(2, 1), PagePins(), KeepBuffered(), AdSlots(1, 2, 3), MinGap("author", 3), Cap("age", 1), MMR(), DPP(), Freshness(2.0),
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_a_page_and_a_model_say_every_item_is_shown_once(data: st.DataObject) -> None:
    slate = Arranger(EVERYTHING).start()
    for _ in range(2):
        items = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=6))
        n = len(items)
        codes = st.lists(st.sampled_from([0, 1, 2, -1, 2**31 - 1, -(2**31)]), min_size=n, max_size=n)
        numbers = st.lists(st.sampled_from(HOSTILE), min_size=n, max_size=n)
        with_vectors = data.draw(st.booleans())
        vectors = np.array([data.draw(numbers), data.draw(numbers)]).T if with_vectors else None
        page = page_of(items, {c: data.draw(codes) for c in COLUMNS}, {"age": data.draw(numbers)}, vectors)
        damage: dict[str, Any] = data.draw(
            st.sampled_from(
                [
                    {},
                    {"item_id": to_block(np.arange(3), "i8")},
                    {"vector": to_block(np.zeros((n + 1, 0)), "f2")},
                    {"vector": to_block(np.zeros(3), "f2")},
                    {"floats": Columns(names=("age", "age"), values=to_block(np.zeros((n, 2)), "f4"))},
                    {"categories": Columns(names=("author",), values=to_block(np.zeros((n + 1, 1), "i4"), "i4"))},
                ]
            )
        )
        page = msgspec.structs.replace(page, candidates=msgspec.structs.replace(page.candidates, **damage))
        slate.take(page, items)
        left, shown = list(items), []
        while left:
            scores = np.array(data.draw(st.lists(st.sampled_from(HOSTILE), max_size=len(left) + 2)))
            index = slate.first(cloud_order(len(left)), scores if data.draw(st.booleans()) else None)
            assert index is not None
            slate.buffered({left[-1]: 1, 77: 1})
            slate.show(index)
            shown.append(left.pop(index))
        assert slate.first(cloud_order(0)) is None
        assert sorted(shown) == sorted(items)
    assert not slate.counters.failed


def test_indices_are_those_of_what_a_session_holds() -> None:
    """A page with repeats, of which one item was shown before; one is then shown out of turn."""
    author = {10: 1, 11: 1, 12: 2, 13: 2, 14: 3}
    raw = [10, 11, 10, 12, 13, 12, 14]
    arrays = FeatureBuilder(SPEC).page(page_of(raw, {"author": [author[item] for item in raw]}))
    held = Remaining(arrays.select(np.array([0, 1, 2, 4], np.intp)), 0)
    slate = Arranger([MinGap("author", 2)]).start()
    slate.take(page_of(raw, {"author": [author[item] for item in raw]}), held.item_id.tolist())
    shown = []
    for elsewhere in (None, 12, None, None):
        index = slate.first(cloud_order(held.count)) if elsewhere is None else held.find(elsewhere)
        assert index is not None
        slate.show(index)
        shown.append(int(held.item_id[index]))
        held.take(index)
    assert shown == [10, 12, 11, 14]


def test_a_repeated_item_has_the_attributes_of_its_first_row() -> None:
    slate = Arranger([MinGap("author", 2)]).start()
    slate.take(page_of([1, 1, 2, 3], {"author": [5, 6, 5, 6]}), [1, 2, 3])
    assert show_all(slate, [1, 2, 3]) == [1, 3, 2]
