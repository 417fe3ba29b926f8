"""The stage that makes one score of the task probabilities, and cloud order of that."""

from __future__ import annotations

import numpy as np

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import Query, Resources, Stage, StageConfig
from pocketrank.cloud.ranking.formula import Formula

__all__ = ["Fuse", "FuseConfig"]


class FuseConfig(StageConfig, frozen=True, kw_only=True):
    """How scores are fused."""

    formula: str
    """An expression over the run's tasks (`pocketrank.cloud.ranking.formula`), such as `long_view + 3 * like`."""


class Fuse(Stage):
    """Orders by the formula, best first; ties stay as they were."""

    Config = FuseConfig

    def __init__(self, config: FuseConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._formula = Formula(config.formula, resources.catalogue.tasks)

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """See `Stage`. Raises `ValueError` for candidates that are not ranked."""
        if candidates.pxtr is None:
            raise ValueError("expected ranked candidates, got a fuse stage before any rank stage")
        score = self._formula(candidates.pxtr)
        return CandidateSet(candidates.item, candidates.pxtr, score).take(np.argsort(-score, kind="stable"))
