"""The stage that gives new items a share of the places of a page, whatever their scores are.

An item that nobody has seen has few chances to show what it is worth when its scores are those of its author and content. So a
share of the places goes to new items at random, each with the same chance. The page as served says which ones, so that what
exploration costs, and what it finds, can be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import time
from zlib import crc32

import numpy as np

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import Query, Resources, Stage, StageConfig

__all__ = ["Explore", "ExploreConfig"]

_HOUR_MS = 3_600_000


class ExploreConfig(StageConfig, frozen=True, kw_only=True):
    """How many places new items get, and which items are new."""

    share: float = 0.05
    """Share of the places, 0 to 1: each is given away with this chance, as long as there are new items."""
    age_hours: float = 24.0
    """An item is new for so long after its upload, by this machine's clock."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.age_hours <= 0:
            raise ValueError("Expected share from 0 to 1 and age_hours above 0")


class Explore(Stage):
    """Moves new items, among those that were retrieved, to places that chance chooses. All others keep their order.

    The same request gets the same places. A channel such as `fresh` must bring new items.
    """

    Config = ExploreConfig

    def __init__(self, config: ExploreConfig, resources: Resources, clock: Callable[[], float] = time) -> None:
        super().__init__(config, resources)
        self._clock = clock

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """See `Stage`."""
        upload_ms = self.resources.catalogue.upload_ms.take(candidates.item)
        new = np.flatnonzero(upload_ms > 1000 * self._clock() - _HOUR_MS * self.config.age_hours)
        size = min(query.request.size, len(candidates))
        rng = np.random.default_rng(crc32(query.request.request_id.encode()))
        places = np.flatnonzero(rng.random(size) < self.config.share)[: len(new)]
        if not len(places):
            return candidates
        chosen = rng.choice(new, len(places), replace=False)
        order = np.empty(len(candidates), np.int64)
        is_taken = np.zeros(len(candidates), np.bool_)
        is_taken[places] = True
        order[places] = chosen
        order[~is_taken] = np.setdiff1d(np.arange(len(candidates)), chosen)
        return replace(candidates.take(order), exploring=is_taken)
