"""Runs the stages of a page, and degrades step by step when they fail or run out of time:

1. `fewer_ranked`: the rank stage scores as many candidates as there is time for.
2. `cached_ranking`: when there is no time for even a few, or a stage failed, the page holds the user's last ranking without
what
   was seen since.
3. `popular`: when there is no such ranking, the page holds popular items, without probabilities.

Filters and rules (`Stage.on_every_page`) hold on every step, so an item that was taken down is never shown.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np

from pocketrank.cloud.pipeline.cached import RankingCache
from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.config import PipelineConfig, PipelineError, default_stages
from pocketrank.cloud.pipeline.filters import AllowedOrder
from pocketrank.cloud.pipeline.plugin import PluginError, Plugins
from pocketrank.cloud.pipeline.stage import OutOfTimeError, Query, Resources, Stage

__all__ = ["Pipeline"]

_STAGES = Plugins(
    "stage",
    Stage,
    {
        "retrieve": "pocketrank.cloud.retrieval.retrieve.Retrieve",
        "rank": "pocketrank.cloud.ranking.rank.Rank",
        "fuse": "pocketrank.cloud.ranking.fuse.Fuse",
        "spread": "pocketrank.cloud.reranking.spread.Spread",
    },
)

_POPULAR_MAX = 1000

_logger = logging.getLogger(__name__)


class Pipeline:
    """Stages of `config` over `resources`. Not for several threads at a time. Raises `PipelineError`."""

    def __init__(self, config: PipelineConfig, resources: Resources, task_weights: Mapping[str, float]) -> None:
        self._resources, self._cache = resources, RankingCache(config.cache)
        if str(resources.folder) not in sys.path:  # a user's own stages are in the folder of the pipeline file
            sys.path.append(str(resources.folder))
        self._stages: list[tuple[str, Stage]] = []
        for i, table in enumerate(config.stage or default_stages(task_weights)):
            try:
                stage = _STAGES.make(table, f"$.stage[{i}]", resources)
            except PluginError as error:
                raise PipelineError(error.path, error.message) from error
            self._stages.append((str(table["use"]).rpartition(".")[2], stage))
        self._popular = AllowedOrder(resources.filters, lambda: resources.catalogue.by_popularity)

    def __call__(self, query: Query, observe: Callable[[str, float], None]) -> CandidateSet:
        """Return candidates in cloud order. `query.degraded` gets the name of whatever was left out or replaced.

        `observe` gets the name of each stage and the seconds it took.
        """
        deadline, candidates = query.deadline, CandidateSet(np.zeros(0, np.int64))
        since = perf_counter()
        for name, stage in self._stages:
            own = stage.config.deadline_ms
            query.deadline = deadline if own is None else deadline.sooner(own / 1e3)
            try:
                if not stage.on_every_page and query.deadline.left() <= 0:
                    raise OutOfTimeError("no time is left")
                candidates = stage(query, candidates)
            except OutOfTimeError:
                return self._fallback(query)
            except Exception:
                # A feed must not stop, so any error of a stage still leads to a page.
                _logger.exception("stage %s failed", name)
                query.degraded.append(f"failed_{name}")
                return self._fallback(query)
            now = perf_counter()
            observe(name, now - since)
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
        for name, stage in self._stages:
            if stage.on_every_page:
                try:
                    candidates = stage(query, candidates)
                except Exception:
                    _logger.exception("stage %s failed", name)
                    query.degraded.append(f"failed_{name}")
        return candidates

    def close(self) -> None:
        """Close the stages."""
        for _, stage in self._stages:
            stage.close()
