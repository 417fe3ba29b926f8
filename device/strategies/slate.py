"""The slate of a session: what is shown next, by the model's order, the preferences and the rules.

A swipe needs one item, so it tests candidates from the best one down and stops at the first that breaks no rule, mostly the
first or second. The whole order is only computed on request (`Slate.order`).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Page
from pocketrank.device.strategies.base import Bonus, Preference, Rule, Test
from pocketrank.device.strategies.facts import Facts

__all__ = ["SlateDecision", "Slate", "StrategyCounters"]

T = TypeVar("T")


class SlateDecision(NamedTuple):
    """Why an item was chosen for a position."""

    position: int
    item_id: int
    model_item_id: int
    """The first item of the model's order. It is the same item if no strategy changed the order."""
    preferred: tuple[str, ...]
    """Preferences that put another item before the model's first."""
    held_back: tuple[tuple[int, str], ...]
    """Better items that were not chosen, best first, with the rule that held each back."""
    relaxed: tuple[str, ...]
    """Rules that the item breaks, since no held candidate keeps them together with the rules above them."""

    @property
    def explanation(self) -> tuple[str, ...]:
        """The part that strategies had in the decision, in words."""
        return (
            *(f"{name} preferred it" for name in self.preferred),
            *(f"{rule} held {item} back" for item, rule in self.held_back),
            *(f"{rule} was relaxed" for rule in self.relaxed),
        )


@dataclass
class StrategyCounters:
    """Totals of one session by strategy name, from 0. A decision is counted when its item is shown."""

    fired: Counter[str] = field(default_factory=Counter)
    """Positions where the strategy put another item first."""
    relaxed: Counter[str] = field(default_factory=Counter)
    """Positions where a rule did not hold."""
    column_missing: Counter[str] = field(default_factory=Counter)
    """Pages on which the strategy had no effect, or less, because a column was missing."""
    failed: Counter[str] = field(default_factory=Counter)
    """Pages on which the strategy raised an error and was left out from then on."""
    discarded_buffer_items: int = 0
    """Items that the player loaded and never showed, because the next page or the next buffer was without them."""
    discarded_buffer_bytes: int = 0
    """Bytes loaded of those items."""

    def sums(self) -> dict[str, int]:
        """Return the totals over all strategies, for telemetry, which allows few names."""
        kinds = {f"strategies_{kind}": getattr(self, kind).total() for kind in ("fired", "relaxed", "column_missing", "failed")}
        buffer = ("discarded_buffer_items", "discarded_buffer_bytes")
        return kinds | {kind: getattr(self, kind) for kind in buffer}


class _Choice(NamedTuple):
    """A decision by rows. Few decisions are ever read, so names and ids are looked up only then."""

    position: int
    items: list[int]  # by row
    row: int
    model_row: int
    preferred: tuple[str, ...]
    broken: int
    passed: list[tuple[int, int]]  # better rows that were passed over, and the rules that they break


class Slate:
    """The strategies of an `Arranger` in one session. Like the session, not for use from several threads at once.

    A held candidate is named by its index among what is left of the page, as in `Remaining`: when one is shown, those behind it
    move up.
    """

    def __init__(self, rules: Sequence[Rule], preferences: Sequence[Preference], position: int = 0) -> None:
        self.counters = StrategyCounters()
        # A rule's bit weighs more than all bits below it together.
        self._rules = [(1 << len(rules) - 1 - place, rule) for place, rule in enumerate(rules)]
        self._names = {bit: rule.name for bit, rule in self._rules}
        self._preferences = [(preference, preference.name) for preference in preferences]
        self._facts = Facts(position)
        self._tests: list[tuple[int, Test]] = []  # with the rule's bit; highest first
        self._bonuses: list[tuple[str, float, Bonus]] = []  # with the preference's name and weight
        self._rows: list[int] = []  # by index
        self._spread: float | None = None
        self._choice: _Choice | None = None

    @property
    def position(self) -> int:
        """Position of the next impression in the session."""
        return self._facts.position

    @property
    def decision(self) -> SlateDecision | None:
        """The last decision of `first`, or None before the first call."""
        if self._choice is None:
            return None
        position, items, row, model_row, preferred, broken, passed = self._choice
        return SlateDecision(
            position,
            items[row],
            items[model_row],
            preferred,
            tuple((items[other], self._names[_highest(broken ^ breaks)]) for other, breaks in passed),
            tuple(name for bit, name in self._names.items() if broken & bit),
        )

    def take(self, page: Page, item_ids: Iterable[int]) -> None:
        """Replace what is held by these items of the page. An item that the page repeats is described by its first row."""
        facts = self._facts
        self._discard(facts.take(page, item_ids))
        self._rows, self._spread = list(range(len(facts.item_ids))), None
        self._tests, self._bonuses = [], []
        for bit, rule in self._rules:
            if (test := self._begin(self._names[bit], rule.test)) is not None:
                self._tests.append((bit, test))
        for preference, name in self._preferences:
            if (bonus := self._begin(name, preference.bonus)) is not None:
                self._bonuses.append((name, preference.weight, bonus))

    def first(self, order: NDArray[np.intp], scores: NDArray[np.floating[Any]] | None = None) -> int | None:
        """Return the index to show next, or None when nothing is held.

        `order` [n] is the model's order of the held indices, best first. `scores` are the totals by which the model ordered, in
        any order, higher is better. Without them preferences are weighed against ranks.
        """
        left = order.tolist()
        if not left:
            return None
        ranked = self._preferred(left, self._relevance(len(left), scores)) if self._bonuses else left
        place, broken, breaks = self._pick(ranked) if self._tests else (0, 0, [])
        rows, facts, index = self._rows, self._facts, ranked[place]
        preferred = () if ranked[0] == left[0] else self._pulled(rows[ranked[0]], rows[left[0]])
        passed = [(rows[other], b) for other, b in zip(ranked, breaks, strict=False)] if breaks else []
        self._choice = _Choice(facts.position, facts.item_ids, rows[index], rows[left[0]], preferred, broken, passed)
        return index

    def order(self, order: NDArray[np.intp], scores: NDArray[np.floating[Any]] | None = None) -> NDArray[np.intp]:
        """Return the indices in the order in which they would be shown if nothing changed; see `first`.

        In the worst case every candidate is tested for every place, some n² / 2 tests.
        """
        if not (self._tests or self._bonuses):
            return order
        left: list[int] = order.tolist()
        relevance = self._relevance(len(left), scores)
        chosen: list[int] = []
        # Show one after the other on copies, then return to the state from before.
        mark, bonuses = self._facts.mark(), self._bonuses
        self._bonuses = [(name, weight, copy.copy(bonus)) for name, weight, bonus in bonuses]
        try:
            while left:
                ranked = self._preferred(left, relevance) if self._bonuses else left
                index = ranked[self._pick(ranked)[0]]
                at = left.index(index)
                del left[at]
                relevance = relevance[:-1] if scores is None else np.delete(relevance, at)  # ranks move up, scores stay
                chosen.append(index)
                self._record(self._rows[index])
        finally:
            self._facts.rewind(*mark)
            self._bonuses = bonuses
        return np.array(chosen, np.intp)

    def show(self, index: int) -> None:
        """Record that the candidate at `index` is shown, and stop holding it. It may be another than `first` returned."""
        row, choice, facts = self._rows.pop(index), self._choice, self._facts
        if choice is not None and choice.row == row and choice.items is facts.item_ids and choice.position == facts.position:
            self._count(choice)
        self._record(row)

    def buffered(self, items: Mapping[int, int]) -> None:
        """Set what the player has on screen or loaded now, in its order: item id → bytes. Ids that are not held are ignored.

        Items that it had loaded before, did not show and no longer has are counted as discarded.
        """
        facts = self._facts
        held = {facts.item_ids[row]: row for row in self._rows}
        buffer = {held[item]: size for item, size in items.items() if item in held}
        self._discard([size for row, size in facts.buffered.items() if row not in buffer])
        # In place, since rules' tests keep a reference.
        facts.buffered.clear()
        facts.buffered.update(buffer)

    # ------------------------------------------------------------------------------------------------------------ choosing

    def _pick(self, ranked: list[int]) -> tuple[int, int, list[int]]:
        """Return the place of the candidate whose broken rules weigh least, those rules, and what those before it break."""
        rows, tests, position = self._rows, self._tests, self._facts.position
        bit, best, place = 0, 1 << len(self._rules), 0
        breaks: list[int] = []
        try:
            for at, index in enumerate(ranked):
                # Tests run by priority, so a candidate is dropped as soon as it is no better than the best so far.
                row, broken = rows[index], 0
                for bit, allows in tests:
                    if not allows(row, position):
                        broken |= bit
                        if broken >= best:
                            break
                else:
                    if not broken:
                        return at, 0, breaks
                    best, place = broken, at
                breaks.append(broken)
        except Exception:  # an app's own rule must not cost the app its swipe
            self.counters.failed[self._names[bit]] += 1
            self._tests = [test for test in tests if test[0] != bit]
            return self._pick(ranked)
        return place, best, breaks[:place]

    def _relevance(self, count: int, scores: NDArray[np.floating[Any]] | None) -> NDArray[np.float64]:
        """Return the relevance of each place of an order, [count], best first. A page's first order has a spread of 1.

        Scores are assigned to places by rank. So the order stays the model's where a list search puts a candidate before others
        of a higher score.
        """
        if scores is not None and len(scores):
            best_first = np.sort(-scores.astype(np.float64))  # negative
            best, worst = float(best_first[0]), float(best_first[-1])  # NaN is sorted behind everything
            if math.isfinite(worst - best):
                # The first order of a page sets the scale, so that a bonus keeps its weight as candidates are used up.
                self._spread = self._spread or worst - best
                if self._spread:
                    with np.errstate(over="ignore"):  # the first spread may have been tiny
                        relevance: NDArray[np.float64] = (best - best_first) / self._spread
                    beyond = count - len(relevance)
                    return np.concatenate([relevance, np.full(beyond, relevance[-1])]) if beyond > 0 else relevance[:count]
        return np.arange(count) / -max(1, len(self._facts.item_ids) - 1)

    def _preferred(self, left: list[int], relevance: NDArray[np.float64]) -> list[int]:
        rows = np.array(self._rows)[left]
        total = relevance
        for _, weight, bonus in self._bonuses:
            total = total + weight * bonus.values[rows]
        return [left[i] for i in (-total).argsort(kind="stable").tolist()]

    def _pulled(self, row: int, other: int) -> tuple[str, ...]:
        """Return the preferences that rate `row` higher than `other`."""
        return tuple(name for name, _, bonus in self._bonuses if bonus.values[row] > bonus.values[other])

    # ---------------------------------------------------------------------------------------------------------- bookkeeping

    def _begin(self, name: str, start: Callable[[Facts], T | None]) -> T | None:
        count, facts, made = self.counters, self._facts, None
        try:
            made = start(facts)
            if isinstance(made, Bonus) and made.values.shape != (len(facts.item_ids),):
                raise ValueError(f"expected a bonus [{len(facts.item_ids)}], got {list(made.values.shape)}")
        except Exception:  # an app's own strategy must not cost the app its page
            count.failed[name] += 1
            made = None
        if facts.missing:
            count.column_missing[name] += 1
            facts.missing.clear()
        return made

    def _record(self, row: int) -> None:
        self._facts.show(row)
        for entry in self._bonuses[:]:
            try:
                entry[2].show(row)
            except Exception:  # as above
                self.counters.failed[entry[0]] += 1
                self._bonuses.remove(entry)

    def _count(self, choice: _Choice) -> None:
        if choice.broken:
            for bit, name in self._names.items():
                if choice.broken & bit:
                    self.counters.relaxed[name] += 1
        if choice.passed:
            for bit in {_highest(choice.broken ^ breaks) for _, breaks in choice.passed}:
                self.counters.fired[self._names[bit]] += 1
        for name in choice.preferred:
            self.counters.fired[name] += 1

    def _discard(self, sizes: list[int]) -> None:
        self.counters.discarded_buffer_items += len(sizes)
        self.counters.discarded_buffer_bytes += sum(sizes)


def _highest(bits: int) -> int:
    """Return the highest of the bits in which the broken rules of two candidates differ. It decides between them."""
    return 1 << bits.bit_length() - 1
