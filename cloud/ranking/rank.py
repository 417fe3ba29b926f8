"""The stage that scores candidates with the multi-task ranker, as many of them as there is time for."""

from __future__ import annotations

from time import perf_counter

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import OutOfTimeError, Query, Resources, Stage, StageConfig

__all__ = ["Rank", "RankConfig"]

_FORGET = 0.1
"""Weight of the latest run in the mean time of a candidate."""


class RankConfig(StageConfig, frozen=True, kw_only=True):
    """How many are ranked at least."""

    candidates_min: int = 50
    """With time for fewer, a page is better made of what was ranked before: the pipeline falls back."""
    reserve_ms: float = 1.0
    """Time that is left to what comes after."""

    def __post_init__(self) -> None:
        if self.candidates_min < 1 or self.reserve_ms < 0:
            raise ValueError("expected candidates_min of 1 or more and reserve_ms of 0 or more")


class Rank(Stage):
    """Probabilities of every task. Drops the last candidates when time is short: what was retrieved first is ranked."""

    Config = RankConfig

    def __init__(self, config: RankConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._ranker = resources.ranker
        self.seconds_each = 0.0
        """Mean time of a candidate in the last runs; 0 before the first."""

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """See `Stage`."""
        if not len(candidates):
            return CandidateSet(candidates.item, self._ranker.nothing)
        left = query.deadline.left() - self.config.reserve_ms / 1e3
        affordable = len(candidates) if self.seconds_each == 0 else int(left / self.seconds_each)
        if left <= 0 or affordable < min(self.config.candidates_min, len(candidates)):
            raise OutOfTimeError(f"{max(0, affordable)} candidates could be ranked")
        if affordable < len(candidates):
            query.degraded.append("fewer_ranked")
            candidates = candidates.take(slice(affordable))
        started = perf_counter()
        pxtr = self._ranker.pxtr(query.user, query.history, candidates.item, scene=query.request.scene, hour=query.hour)
        took = (perf_counter() - started) / len(candidates)
        self.seconds_each += (took - self.seconds_each) * (_FORGET if self.seconds_each else 1.0)
        return CandidateSet(candidates.item, pxtr)
