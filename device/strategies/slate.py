"""What one session shows next: the model's order, shifted by preferences, held to rules.

A swipe needs one item, so it tests candidates from the best one down and stops at the first that breaks nothing, mostly the
first or second. All of the order is only made for who asks.
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
    """What the model's order had first; the same where no strategy changed it."""
    preferred: tuple[str, ...]
    """Preferences that put another item before the model's first."""
    held_back: tuple[tuple[int, str], ...]
    """Better items that were not chosen, best first, and the rule that kept each back."""
    relaxed: tuple[str, ...]
    """Rules that the item breaks: no candidate that was held keeps them together with the rules above them."""

    @property
    def told(self) -> tuple[str, ...]:
        """What strategies had to do with it, in words."""
        return (
            *(f"{name} preferred it" for name in self.preferred),
            *(f"{rule} kept {item} back" for item, rule in self.held_back),
            *(f"{rule} could not hold" for rule in self.relaxed),
        )


@dataclass
class StrategyCounters:
    """Totals of one session, by the names of strategies, from 0. What was decided counts when it is shown."""

    fired: Counter[str] = field(default_factory=Counter)
    """positions where it made another item come first"""
    relaxed: Counter[str] = field(default_factory=Counter)
    """positions where a rule did not hold"""
    column_missing: Counter[str] = field(default_factory=Counter)
    """pages on which it did nothing, or less, for want of a column"""
    failed: Counter[str] = field(default_factory=Counter)
    """pages on which it raised and was left out from there"""
    discarded_buffer_items: int = 0
    """items that the player had loaded and nobody will see: a page without them came, or others took their place"""
    discarded_buffer_bytes: int = 0
    """what was loaded of them"""

    def sums(self) -> dict[str, int]:
        """Over all strategies, for telemetry, whose names are few."""
        kinds = {f"strategies_{kind}": getattr(self, kind).total() for kind in ("fired", "relaxed", "column_missing", "failed")}
        buffer = ("discarded_buffer_items", "discarded_buffer_bytes")
        return kinds | {kind: getattr(self, kind) for kind in buffer}

    def totals(self) -> dict[str, int]:
        """All of them by name, `strategies.relaxed.MinGap(author, 3)`, for telemetry."""
        by_name = {
            f"strategies.{kind}.{name}": count
            for kind in ("fired", "relaxed", "column_missing", "failed")
            for name, count in getattr(self, kind).items()
        }
        buffer = ("discarded_buffer_items", "discarded_buffer_bytes")
        return by_name | {f"strategies.{kind}": getattr(self, kind) for kind in buffer}


class _Choice(NamedTuple):
    """A decision as it is made; few are ever read."""

    position: int
    items: list[int]  # by row
    row: int
    model_row: int
    preferred: tuple[str, ...]
    broken: int
    passed: list[tuple[int, int]]  # rows that came before it, and what they break


class Slate:
    """One session's part of an `Arranger`. Like the session, not for use from several threads at once.

    Held candidates are told by their index among what is left of the page, as in `Remaining`: those behind one that is shown
    move up.
    """

    def __init__(self, rules: Sequence[Rule], preferences: Sequence[Preference], position: int = 0) -> None:
        self.counters = StrategyCounters()
        # A rule's bit is of more worth than all those below it together.
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
        """Of what is shown next, in the session."""
        return self._facts.position

    @property
    def decision(self) -> SlateDecision | None:
        """The last one that `first` made; None before it made one."""
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
        """Hold these of the page's items instead of what was held, by index. Repeats in a page are their first row."""
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
        """The index to show next, of the model's `order` [n] of what is held, best first; None when it is empty.

        `scores` are the totals by which the model ordered, more is better, in any order; without them preferences go by ranks.
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

    def order(
        self, order: NDArray[np.intp], scores: NDArray[np.floating[Any]] | None = None, most: int | None = None
    ) -> NDArray[np.intp]:
        """Indices in the order in which they would be shown if nothing changed, the first `most` of them; see `first`.

        Tests every candidate for every place at worst: some n² / 2 of them.
        """
        if not (self._tests or self._bonuses):
            return order[:most]
        left: list[int] = order.tolist()
        relevance = self._relevance(len(left), scores)
        chosen: list[int] = []
        mark, bonuses = self._facts.mark(), self._bonuses
        self._bonuses = [(name, weight, copy.copy(bonus)) for name, weight, bonus in bonuses]
        try:
            for _ in range(len(left) if most is None else min(most, len(left))):
                ranked = self._preferred(left, relevance) if self._bonuses else left
                index = ranked[self._pick(ranked)[0]]
                at = left.index(index)
                del left[at]
                relevance = relevance[:-1] if scores is None else np.delete(relevance, at)  # ranks move up, scores stay
                chosen.append(index)
                self._tell(self._rows[index])
        finally:
            self._facts.rewind(mark)
            self._bonuses = bonuses
        return np.array(chosen, np.intp)

    def show(self, index: int) -> None:
        """What is held at `index` is shown, because it was `first` or because the app did, and held no more."""
        row, choice, facts = self._rows.pop(index), self._choice, self._facts
        if choice is not None and choice.row == row and choice.items is facts.item_ids and choice.position == facts.position:
            self._count(choice)
        self._tell(row)

    def buffered(self, items: Mapping[int, int]) -> None:
        """What the player has on screen or loaded now, in its order: item id → bytes. Ids that are not held are left aside.

        What it had loaded before, has no more and did not show is counted as thrown away.
        """
        facts = self._facts
        held = {facts.item_ids[row]: row for row in self._rows}
        buffer = {held[item]: size for item, size in items.items() if item in held}
        self._discard([size for row, size in facts.buffered.items() if row not in buffer])
        # In place: tests hold on to it.
        facts.buffered.clear()
        facts.buffered.update(buffer)

    # ------------------------------------------------------------------------------------------------------------ choosing

    def _pick(self, ranked: list[int]) -> tuple[int, int, list[int]]:
        """Place of the candidate whose breaks are the least, what it breaks, and what those before it break."""
        rows, tests, position = self._rows, self._tests, self._facts.position
        bit, best, place = 0, 1 << len(self._rules), 0
        breaks: list[int] = []
        try:
            for at, index in enumerate(ranked):
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
        """What each place of an order is worth, [count], best first: a page's scores spread over 1 when it is first ordered.

        A list search puts some candidates before others of a higher score: they swap scores, and the order stays the model's.
        """
        if scores is not None and len(scores):
            best_first = np.sort(-scores.astype(np.float64))  # negative
            best, worst = float(best_first[0]), float(best_first[-1])  # NaN is sorted behind everything
            if math.isfinite(worst - best):
                self._spread = self._spread or worst - best
                if self._spread:
                    with np.errstate(over="ignore"):  # the first spread may have been next to nothing
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
        """The preferences that think more of `row` than of `other`."""
        return tuple(name for name, _, bonus in self._bonuses if bonus.values[row] > bonus.values[other])

    # ---------------------------------------------------------------------------------------------------------- bookkeeping

    def _begin(self, name: str, ask: Callable[[Facts], T | None]) -> T | None:
        count, facts, made = self.counters, self._facts, None
        try:
            made = ask(facts)
            if isinstance(made, Bonus) and made.values.shape != (len(facts.item_ids),):
                raise ValueError(f"expected a bonus [{len(facts.item_ids)}], got {list(made.values.shape)}")
        except Exception:  # an app's own strategy must not cost the app its page
            count.failed[name] += 1
            made = None
        if facts.lacking:
            count.column_missing[name] += 1
            facts.lacking.clear()
        return made

    def _tell(self, row: int) -> None:
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
    """The bit that decides between two candidates, of those in which their breaks differ."""
    return 1 << bits.bit_length() - 1
