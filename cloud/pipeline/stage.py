"""The seam of a stage: a small class with a config above it and one call over columnar candidates.

A stage of your own::

    class BoostConfig(StageConfig, frozen=True, kw_only=True):
        author: int
        by: float = 2.0

    class Boost(Stage):
        Config = BoostConfig

        def __call__(self, query, candidates):
            mine = self.resources.catalogue.author[candidates.item] == self.config.author
            score = candidates.score * np.where(mine, self.config.by, 1.0)
            return replace(candidates, score=score).take(np.argsort(-score, kind="stable"))

in `rules.py` beside the pipeline file goes in with `use = "rules.Boost"`.

Errors::

    OutOfTimeError             the time that is left does not do for the stage; the pipeline falls back
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.published.onnx_ranker import History, OnnxRanker
from pocketrank.device.contract import PageRequest

if TYPE_CHECKING:
    from pocketrank.cloud.pipeline.filters import Filters
    from pocketrank.cloud.vectors.index import VectorIndex

__all__ = ["Deadline", "OutOfTimeError", "Query", "Resources", "Stage", "StageConfig"]


class OutOfTimeError(Exception):
    """The time that is left does not do for the stage."""


class StageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a stage's table in the pipeline file may hold."""

    deadline_ms: float | None = None
    """The stage must be done after so long; None: when the page must. What waits for a network is cut off by then, what
    computes does less."""


class Deadline:
    """An instant by which something must be done."""

    __slots__ = ("_until",)

    def __init__(self, seconds: float, since: float | None = None) -> None:
        """So many seconds after `since`, an instant of `time.perf_counter`, or after now."""
        self._until = (perf_counter() if since is None else since) + seconds

    def left(self) -> float:
        """Seconds that are left; below 0 when it has passed."""
        return self._until - perf_counter()

    def sooner(self, seconds: float | None) -> Deadline:
        """The sooner one of this and one that many seconds from now."""
        if seconds is None:
            return self
        other = Deadline(seconds)
        return other if other._until < self._until else self


@dataclass(slots=True)
class Query:
    """One page that is asked for, and what is known of who asks."""

    request: PageRequest
    user: int
    """position in the user tables, 0 = unknown"""
    history: History
    """the last events, oldest first"""
    exclude: NDArray[np.int64]
    """[x] positions that must not come back, repeats possible: seen, excluded by the request, and row 0"""
    hour: int
    """0..23 where the run counted hours"""
    deadline: Deadline
    """of the page, or of the stage that runs"""
    vector: NDArray[np.float32] | None = None
    """[D] of the user in the space of the served run's index; None when it could not be had"""
    degraded: list[str] = field(default_factory=list)
    """what was left out or replaced on the way, by name"""


@dataclass(frozen=True)
class Resources:
    """What stages may use."""

    catalogue: Catalogue
    ranker: OnnxRanker
    indexes: Mapping[str, VectorIndex]
    """by the name that the file gives them"""
    filters: Filters
    folder: Path
    """of the pipeline file; relative paths start here"""


class Stage(ABC):
    """One step from a query to a page. Raises `ValueError` for a config that does not fit. Called from one thread at a time,
    which need not be the same.
    """

    Config: ClassVar[type[StageConfig]] = StageConfig
    on_every_page: ClassVar[bool] = False
    """Whether the stage is a rule, which holds for a page from the cache or of popular items too. It then meets candidates
    with `pxtr` of None or NaN."""

    def __init__(self, config: Any, resources: Resources) -> None:
        """`config` is a `Config`."""
        self.config, self.resources = config, resources

    @abstractmethod
    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """What comes of `candidates`; the first stage gets none. May raise `OutOfTimeError`."""

    def close(self) -> None:
        """Let go of what the stage holds."""
        return
