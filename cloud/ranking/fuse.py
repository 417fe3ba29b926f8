"""The stage that fuses the task probabilities into one score and sorts by it."""

from __future__ import annotations

import numpy as np

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import Query, Resources, Stage, StageConfig
from pocketrank.cloud.ranking.formula import Formula

__all__ = ["Fuse", "FuseConfig"]


class FuseConfig(StageConfig, frozen=True, kw_only=True):
    """The fusion formula."""

    formula: str
    """Expression over the run's tasks (`pocketrank.cloud.ranking.formula`), such as `long_view + 3 * like`."""


class Fuse(Stage):
    """Sorts by the formula, best first; ties keep their order."""

    Config = FuseConfig

    def __init__(self, config: FuseConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._formula = Formula(config.formula, resources.catalogue.tasks)

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """See `Stage`. Raises `ValueError` for candidates that are not ranked."""
        if candidates.pxtr is None:
            raise ValueError("Expected ranked candidates, got a fuse stage before any rank stage")
        score = self._formula(candidates.pxtr)
        return CandidateSet(candidates.item, candidates.pxtr, score, candidates.statistics).take(
            np.argsort(-score, kind="stable")
        )
