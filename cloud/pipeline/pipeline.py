"""Runs the stages of a page, and degrades step by step when they fail or run out of time:

1. `fewer_ranked`: the rank stage scores as many candidates as there is time for.
2. `cached_ranking`: when there is no time for even a few, or a stage failed or hangs, the page holds the user's last ranking
   without what was seen since.
3. `popular`: when there is no such ranking, the page holds popular items, without probabilities.

Filters and rules (`Stage.on_every_page`) hold on every step, so an item that was taken down is never shown.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter

import numpy as np

from pocketrank.cloud.pipeline.cached import RankingCache
from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.config import PipelineConfig, PipelineError, default_stages
from pocketrank.cloud.pipeline.filters import AllowedOrder
from pocketrank.cloud.pipeline.plugin import PluginError, Plugins
from pocketrank.cloud.pipeline.stage import OutOfTimeError, Query, Resources, Stage
from pocketrank.cloud.pipeline.watchdog import HUNG_S, HungError, Watchdog

__all__ = ["Pipeline"]

_STAGES = Plugins(
    "stage",
    Stage,
    {
        "retrieve": "pocketrank.cloud.retrieval.retrieve.Retrieve",
        "rank": "pocketrank.cloud.ranking.rank.Rank",
        "fuse": "pocketrank.cloud.ranking.fuse.Fuse",
        "spread": "pocketrank.cloud.reranking.spread.Spread",
        "explore": "pocketrank.cloud.reranking.explore.Explore",
    },
)

_POPULAR_MAX = 1000
_LADDER_S = 0.01
"""Time that a page keeps for the ladder when it waits for a user's own stage."""
_WAIT_MIN_S = 0.02
"""Shortest wait for one. A page that is out of time still waits for its rules."""

_logger = logging.getLogger(__name__)


class Pipeline:
    """Stages of `config` over `resources`. Not for several threads at a time. Raises `PipelineError`."""

    def __init__(self, config: PipelineConfig, resources: Resources, task_weights: Mapping[str, float]) -> None:
        self._resources, self._cache = resources, RankingCache(config.cache)
        if str(resources.folder) not in sys.path:  # a user's own stages are in the folder of the pipeline file
            sys.path.append(str(resources.folder))
        self._stages: list[_Step] = []
        for i, table in enumerate(config.stage or default_stages(task_weights)):
            make = partial(_STAGES.make, table, f"$.stage[{i}]", resources)
            try:
                stage = make()
            except PluginError as error:
                raise PipelineError(error.path, error.message) from error
            name = str(table["use"]).rpartition(".")[2]
            own = Watchdog(f"stage {name}", stage, make) if _STAGES.is_own(table) else None
            self._stages.append(_Step(name, stage, own))
        self._popular = AllowedOrder(resources.filters, lambda: resources.catalogue.by_popularity)

    def __call__(self, query: Query, observe: Callable[[str, float], None]) -> CandidateSet:
        """Return candidates in cloud order. `query.degraded` gets the name of whatever was left out or replaced.

        `observe` gets the name of each stage and the seconds it took.
        """
        deadline, candidates = query.deadline, CandidateSet(np.zeros(0, np.int64))
        since = perf_counter()
        for step in self._stages:
            own = step.stage.config.deadline_ms
            query.deadline = deadline if own is None else deadline.sooner(own / 1e3)
            try:
                if not step.stage.on_every_page and query.deadline.left() <= 0:
                    raise OutOfTimeError("no time is left")
                candidates = step(query, candidates)
            except OutOfTimeError:
                return self._fallback(query)
            except Exception as error:  # a feed must not stop, so any error of a stage still leads to a page
                step.failed(query, error)
                return self._fallback(query)
            now = perf_counter()
            observe(step.name, now - since)
            since = now
        if candidates.score is not None:
            self._cache.keep((query.request.user_id, query.request.experiment), candidates)
        return candidates

    def _fallback(self, query: Query) -> CandidateSet:
        """Return the user's last ranking when enough of it may still be shown, otherwise popular items."""
        allowed = self._resources.filters.allowed
        cached = self._cache.get((query.request.user_id, query.request.experiment))
        if cached is not None:
            cached = cached.take(allowed[cached.item] & ~np.isin(cached.item, query.exclude))
        if cached is not None and len(cached) >= query.request.size:
            query.degraded.append("cached_ranking")
            return self._apply_rules(query, cached)
        query.degraded.append("popular")
        item = self._popular(query.exclude, min(_POPULAR_MAX, 2 * query.request.size))
        pxtr = np.full((len(item), len(self._resources.catalogue.tasks)), np.nan, np.float32)
        return self._apply_rules(query, CandidateSet(item, pxtr, self._resources.catalogue.popularity[item]))

    def _apply_rules(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        for step in self._stages:
            if step.stage.on_every_page:
                try:
                    candidates = step(query, candidates)
                except Exception as error:
                    step.failed(query, error)
        return candidates

    @property
    def hung_s(self) -> float:
        """Seconds since a user's own stage or channel was called that has not ended; 0 when there is none."""
        return max(step.hung_s for step in self._stages)

    def check(self) -> None:
        """Raise `HungError` when a user's own stage or channel does not end."""
        if (hung_s := self.hung_s) > HUNG_S:
            raise HungError(f"Expected stages that end, got one that has been running for {hung_s:.0f} s")

    def close(self) -> None:
        """Close the stages."""
        for step in self._stages:
            step.close()


class _Step:
    """A stage and its name in the file. A user's own has a watchdog, which calls this instance or another."""

    def __init__(self, name: str, stage: Stage, watchdog: Watchdog[Stage] | None) -> None:
        self.name, self.stage, self._watchdog = name, stage, watchdog

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """Return or raise what the stage does. Raises `HungError`."""
        if self._watchdog is None:
            return self.stage(query, candidates)
        seconds = max(query.deadline.left() - _LADDER_S, _WAIT_MIN_S)
        return self._watchdog(lambda stage: stage(query, candidates), seconds)

    def failed(self, query: Query, error: Exception) -> None:
        """Report that the stage failed, or was given up on, which its watchdog logs."""
        if isinstance(error, HungError):
            query.degraded.append(f"hung_{self.name}")
        else:
            _logger.error("stage %s failed", self.name, exc_info=error)
            query.degraded.append(f"failed_{self.name}")

    @property
    def hung_s(self) -> float:
        return self.stage.hung_s if self._watchdog is None else max(self._watchdog.plugin.hung_s, self._watchdog.hung_s)

    def close(self) -> None:
        (self.stage if self._watchdog is None else self._watchdog).close()
