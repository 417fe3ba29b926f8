"""Keeps a page from being more of the same: a soft cap on the candidates of a category that come before all others had theirs.

A ranker's best thirty are often near copies of one another, chosen for the same error in the same direction; then neither the
user nor the model on the device has a choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import Query, Resources, Stage, StageConfig

__all__ = ["Spread", "SpreadConfig", "spread_categories"]


class SpreadConfig(StageConfig, frozen=True, kw_only=True):
    """How far a page is spread."""

    max_per_category: int = 3
    """Candidates of one category that may come before every category had its share."""
    column: str = "category"
    """Which of the run's categorical columns."""

    def __post_init__(self) -> None:
        if self.max_per_category < 1:
            raise ValueError(f"expected max_per_category of 1 or more, got {self.max_per_category}")


class Spread(Stage):
    """Applies `spread_categories`. A run without the column is left as it is."""

    Config = SpreadConfig
    on_every_page = True

    def __init__(self, config: SpreadConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        codes = resources.catalogue.category(config.column)
        self._codes = None if codes is None else _narrow(codes)

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """See `Stage`."""
        if self._codes is None:
            return candidates
        return candidates.take(spread_categories(self._codes.take(candidates.item), self.config.max_per_category))


def spread_categories(category: NDArray[np.integer], max_per_category: int) -> NDArray[np.int64]:
    """The new order of candidates [n] that stand in ranked order with these categories [n].

    First go the best `max_per_category` of each category, then the next `max_per_category` of each, and so on, each round in
    ranked order. Nothing is dropped. A category is any code, unknown (0) included.
    """
    n = len(category)
    by_category = np.argsort(category, kind="stable")
    codes = category.take(by_category)
    place = np.arange(n)
    first = np.zeros(n, np.int64)  # of each one's category, in the order of categories
    np.multiply(place[1:], codes[1:] != codes[:-1], out=first[1:])
    np.maximum.accumulate(first, out=first)
    turn = np.empty(n, np.int16 if n < 1 << 15 else np.int64)
    turn[by_category] = (place - first) // max_per_category
    return np.argsort(turn, kind="stable")


def _narrow(codes: NDArray[np.integer]) -> NDArray[np.integer]:
    """In 16 bits where they fit: numpy sorts those by radix, several times as fast."""
    return codes.astype(np.int16) if len(codes) and 0 <= codes.min() <= codes.max() < 1 << 15 else codes
