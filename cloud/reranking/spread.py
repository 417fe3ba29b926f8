"""The stage that spreads a page over categories, by a soft limit on the candidates of one category at its top.

The best thirty of a ranker are often near copies of one another, all overrated by the same error. Then neither the user nor the
model on the device has a choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import Query, Resources, Stage, StageConfig

__all__ = ["Spread", "SpreadConfig", "spread_categories"]


class SpreadConfig(StageConfig, frozen=True, kw_only=True):
    """The limit per category, and the column with the categories."""

    max_per_category: int = 3
    """Candidates of one category that are placed before every other category has had as many."""
    column: str = "category"
    """One of the run's categorical columns."""

    def __post_init__(self) -> None:
        if self.max_per_category < 1:
            raise ValueError(f"Expected max_per_category of 1 or more, got {self.max_per_category}")


class Spread(Stage):
    """Applies `spread_categories`. Without the column in the run, candidates keep their order."""

    Config = SpreadConfig
    on_every_page = True

    def __init__(self, config: SpreadConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._codes: NDArray[np.integer] | None = None
        self._version = -1
        self._look_up()

    def _look_up(self) -> None:
        catalogue = self.resources.catalogue
        if catalogue.version != self._version:
            codes = catalogue.category(self.config.column)
            self._codes, self._version = None if codes is None else _narrow(codes), catalogue.version

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """See `Stage`."""
        self._look_up()
        if self._codes is None:
            return candidates
        return candidates.take(spread_categories(self._codes.take(candidates.item), self.config.max_per_category))


def spread_categories(category: NDArray[np.integer], max_per_category: int) -> NDArray[np.int64]:
    """Return the new order [n] of candidates in ranked order whose categories are `category` [n].

    The best `max_per_category` of each category come first, then the next `max_per_category` of each, and so on. Each round is
    in ranked order. No candidate is dropped. A category is any code; unknown (0) counts as one.
    """
    n = len(category)
    by_category = np.argsort(category, kind="stable")
    codes = category.take(by_category)
    place = np.arange(n)
    first = np.zeros(n, np.int64)  # where the category of each one starts in `by_category`
    np.multiply(place[1:], codes[1:] != codes[:-1], out=first[1:])
    np.maximum.accumulate(first, out=first)
    round_ = np.empty(n, np.int16 if n < 1 << 15 else np.int64)
    round_[by_category] = (place - first) // max_per_category
    return np.argsort(round_, kind="stable")


def _narrow(codes: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the codes in 16 bits where they fit, which numpy sorts by radix, several times as fast."""
    return codes.astype(np.int16) if len(codes) and 0 <= codes.min() <= codes.max() < 1 << 15 else codes
