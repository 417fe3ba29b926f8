"""Diversity: candidates unlike what was shown, by marginal relevance (MMR) or determinantal point processes (DPP).

Both are greedy and incremental: showing an item costs one product of its vector with those of the candidates. Similarity is the
cosine of the page's item vectors; on a page without them it is 1 within a category and 0 between two. The last `memory` items
shown before the page count as well, if they are described alike: by vectors of the same split version, or by category.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.strategies.base import Bonus, Preference, need
from pocketrank.device.strategies.facts import RECENT_MAX, Facts

__all__ = ["DPP", "MMR"]

_ROWS = 16  # of the factor at first; doubled as more items are shown


@dataclass(frozen=True)
class _Diversity(Preference):
    weight: float = 0.3
    """Relative to a spread of scores of 1. Not tuned: the value of variety shows in an app's own retention."""
    memory: int = 10
    """Number of items shown before the page that count: one page of the default size, about what a viewer remembers."""
    column: str = "category"
    """Category by which items are similar on a page without vectors."""

    def __post_init__(self) -> None:
        need(0 <= self.weight < np.inf, "a weight from 0", self.weight)
        need(0 <= self.memory <= RECENT_MAX, f"a memory of 0..{RECENT_MAX}", self.memory)

    def bonus(self, facts: Facts) -> Bonus | None:
        """See `Preference`."""
        # Without vectors each category is a unit vector of its own, and an unknown one is 0: unlike everything.
        shown = facts.shown(self.column)
        vectors, before = facts.vectors(), facts.recent(self.memory)
        if vectors is None:
            values = facts.values(self.column)
            if values is None:
                return None
            known = [value for value in shown[-self.memory :] if value is not None] if self.memory else []
            place = {value: i for i, value in enumerate(dict.fromkeys([*known, *values]))}
            one_hot = np.eye(len(place), dtype=np.float32)
            if None in place:
                one_hot[place[None]] = 0
            vectors, before = one_hot[[place[v] for v in values]], one_hot[[place[v] for v in known]]
        return self._start(before, vectors)

    @abstractmethod
    def _start(self, before: NDArray[np.float32], vectors: NDArray[np.float32]) -> Bonus:
        """Return the bonus of rows with unit `vectors` [n, D], after items with the vectors `before` [m, D]."""


class MMR(_Diversity):
    """Minus the similarity to the most similar item that was shown, where that is above 0.

    Carbonell and Goldstein, SIGIR 1998, whose λ is 1 / (1 + weight). Raises ValueError for numbers out of range.
    """

    def _start(self, before: NDArray[np.float32], vectors: NDArray[np.float32]) -> Bonus:
        return _Marginal(before, vectors)


class _Marginal(Bonus):
    def __init__(self, before: NDArray[np.float32], vectors: NDArray[np.float32]) -> None:
        super().__init__(-(vectors @ before.T).max(axis=1, initial=0))
        self._vectors = vectors

    def show(self, row: int) -> None:
        self.values = np.minimum(self.values, -(self._vectors @ self._vectors[row]))


@dataclass(frozen=True)
class DPP(_Diversity):
    """The log of the volume that the item adds to those shown: greedy MAP inference of a determinantal point process.

    Chen, Zhang and Zhou, NeurIPS 2018, algorithm 1 for a kernel of scores and similarities, whose θ is 1 / (1 + weight). Unlike
    MMR it recognises an item that is a combination of several that were shown. Raises ValueError for numbers out of range.
    """

    independent: float = 0.1
    """Share of an item that no other item can replace, from .01 to 1. Its log bounds the bonus, so that a second item of a
    category is held back and not banned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(0.01 <= self.independent <= 1, "an independent share from .01 to 1", self.independent)

    def _start(self, before: NDArray[np.float32], vectors: NDArray[np.float32]) -> Bonus:
        return _Volume(before, vectors, self.independent)


class _Volume(Bonus):
    """Bonus by the incremental Cholesky factor of the items shown, extended to every candidate."""

    def __init__(self, before: NDArray[np.float32], vectors: NDArray[np.float32], independent: float) -> None:
        self._first = len(before)
        self._vectors = np.concatenate([before, vectors])
        self._floor = independent
        self._factor = np.zeros((_ROWS, len(self._vectors)), np.float32)
        self._count = 0
        self._left = np.ones(len(self._vectors), np.float32)  # d², what is left of each item's volume
        super().__init__(np.zeros(len(vectors), np.float32))
        for row in range(-self._first, 0):
            self.show(row)

    def show(self, row: int) -> None:
        at, k = self._first + row, self._count
        if k == len(self._factor):
            self._factor = np.concatenate([self._factor, np.zeros_like(self._factor)])
        similar = (1 - self._floor) * (self._vectors @ self._vectors[at])
        # Rows from k on are free: a copy that looked ahead may have written there.
        new = self._factor[k]
        np.subtract(similar, self._factor[:k, at] @ self._factor[:k], out=new)
        new /= np.sqrt(self._left[at])
        self._left = np.maximum(self._left - new * new, np.float32(self._floor))
        self._count = k + 1
        self.values = np.log(self._left[self._first :])
