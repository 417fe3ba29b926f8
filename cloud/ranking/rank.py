"""The stage that scores as many candidates with the multi-task ranker as there is time for."""

from __future__ import annotations

from time import perf_counter

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import OutOfTimeError, Query, Resources, Stage, StageConfig

__all__ = ["Rank", "RankConfig"]

_LATEST_WEIGHT = 0.1
"""Weight of the latest run in the running mean of a candidate's time."""


class RankConfig(StageConfig, frozen=True, kw_only=True):
    """How many candidates must be ranked, and how much time is left for later stages."""

    candidates_min: int = 50
    """Minimum number of candidates. With time for fewer the pipeline falls back: the last ranking makes a better page."""
    reserve_ms: float = 1.0
    """Time that is left for the stages after this one."""

    def __post_init__(self) -> None:
        if self.candidates_min < 1 or self.reserve_ms < 0:
            raise ValueError("Expected candidates_min of 1 or more and reserve_ms of 0 or more")


class Rank(Stage):
    """Adds the probability of each task. When time is short, the candidates that were retrieved last are dropped."""

    Config = RankConfig

    def __init__(self, config: RankConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._ranker, self._moment = resources.ranker, resources.moment
        self.seconds_each = 0.0
        """Running mean of the time per candidate; 0 before the first run."""

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """See `Stage`."""
        if not len(candidates):
            return CandidateSet(candidates.item, self._ranker.nothing)
        # How many candidates there is time for; all of them before the first measurement.
        left = query.deadline.left() - self.config.reserve_ms / 1e3
        affordable = len(candidates) if self.seconds_each == 0 else int(left / self.seconds_each)
        if left <= 0 or affordable < min(self.config.candidates_min, len(candidates)):
            raise OutOfTimeError(f"{max(0, affordable)} candidates could be ranked")
        if affordable < len(candidates):
            query.degraded.append("fewer_ranked")
            candidates = candidates.take(slice(affordable))
        started = perf_counter()
        moment = None
        if self._moment is not None and query.recent is not None:
            moment = self._moment(candidates.item, query.request.now_ms, query.recent)
        scene, hour = query.request.scene, query.hour
        pxtr = self._ranker.pxtr(query.user, query.history, candidates.item, scene=scene, hour=hour, moment=moment)
        took = (perf_counter() - started) / len(candidates)
        self.seconds_each += (took - self.seconds_each) * (_LATEST_WEIGHT if self.seconds_each else 1.0)
        query.moment = moment
        return CandidateSet(candidates.item, pxtr, statistics=None if moment is None else moment.statistics)
