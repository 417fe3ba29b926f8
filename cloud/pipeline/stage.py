"""The interface of a stage: a config and a small class whose one call takes candidates and returns candidates.

A stage of your own::

    from dataclasses import replace

    import numpy as np

    from pocketrank.cloud.pipeline import Stage, StageConfig

    class BoostConfig(StageConfig, frozen=True, kw_only=True):
        author: int
        by: float = 2.0

    class Boost(Stage):
        Config = BoostConfig

        def __call__(self, query, candidates):
            mine = self.resources.catalogue.author[candidates.item] == self.config.author
            score = (candidates.score * np.where(mine, self.config.by, 1.0)).astype(np.float32)
            return replace(candidates, score=score).take(np.argsort(-score, kind="stable"))

Saved as `rules.py` in the folder of the pipeline file, it is used by a `[[stage]]` with `use = "rules.Boost"`.

Errors::

    OutOfTimeError             too little time is left for the stage; the pipeline falls back
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

from pocketrank.cloud.data.features import RecentEvents
from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.published.artifacts import Artifacts
from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.published.moment import Moment, MomentInputs
from pocketrank.cloud.published.onnx_ranker import History, OnnxRanker
from pocketrank.device.contract import PageRequest

if TYPE_CHECKING:
    from pocketrank.cloud.pipeline.filters import Filters
    from pocketrank.cloud.vectors.index import VectorIndex

__all__ = ["Deadline", "OutOfTimeError", "Query", "Resources", "Stage", "StageConfig"]


class OutOfTimeError(Exception):
    """Too little time is left for the stage."""


class StageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class for the table of a stage in the pipeline file."""

    deadline_ms: float | None = None
    """Time that the stage may take; None: what the page has left. A stage that waits for a network gives up by then, and one
    that computes does less."""


class Deadline:
    """Instant by which something must be done."""

    __slots__ = ("_until",)

    def __init__(self, seconds: float, since: float | None = None) -> None:
        """`seconds` after `since`, an instant of `time.perf_counter`, or after now."""
        self._until = (perf_counter() if since is None else since) + seconds

    def left(self) -> float:
        """Return the seconds that are left; below 0 once it has passed."""
        return self._until - perf_counter()

    def sooner(self, seconds: float | None) -> Deadline:
        """Return the earlier of this deadline and one in `seconds` from now."""
        if seconds is None:
            return self
        other = Deadline(seconds)
        return other if other._until < self._until else self


@dataclass(slots=True)
class Query:
    """Request for one page, and what is known of its user."""

    request: PageRequest
    user: int
    """position in the user tables, 0 = unknown"""
    history: History
    """the last events, oldest first"""
    exclude: NDArray[np.int64]
    """[x] positions that must not be returned, repeats possible: seen, removed, excluded by the request, and row 0"""
    hour: int
    """0..23 in the run's time zone"""
    deadline: Deadline
    """of the stage that runs; of the page between stages"""
    recent: RecentEvents | None = None
    """the last events, more of them, that features of the moment are made of; None where the run has no such features"""
    vector: NDArray[np.float32] | None = None
    """[D] the user's vector in the space of the served run's indexes; None when it is unavailable"""
    found: list[tuple[str, NDArray[np.int64]]] = field(default_factory=list)
    """names of the channels that were asked, and the positions that each returned"""
    moment: MomentInputs | None = None
    """features of the moment that the candidates were ranked with; None before, and where the run has none"""
    degraded: list[str] = field(default_factory=list)
    """names of what was left out or replaced so far"""


@dataclass(frozen=True)
class Resources:
    """Shared parts that stages and channels may use."""

    catalogue: Catalogue
    ranker: OnnxRanker
    indexes: Mapping[str, VectorIndex]
    """by their names in the pipeline file"""
    filters: Filters
    folder: Path
    """of the pipeline file; relative paths start here"""
    artifacts: Artifacts
    """of the run: what the parts of its recipe made, by name"""
    moment: Moment | None = None
    """features of the moment; None where the run has none"""


class Stage(ABC):
    """One step from a query to a page. Raises `ValueError` for a config that does not fit.

    It is called by one thread at a time, not always by the same one. While a call of a user's own stage hangs, another instance
    may be made.
    """

    Config: ClassVar[type[StageConfig]] = StageConfig
    on_every_page: ClassVar[bool] = False
    """Whether the stage is a rule, which also holds for pages from the cache or of popular items. A rule must accept candidates
    whose `pxtr` is None or NaN."""

    def __init__(self, config: Any, resources: Resources) -> None:
        """`config` is an instance of `Config`."""
        self.config, self.resources = config, resources

    @abstractmethod
    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """Return the candidates to pass on. The first stage gets an empty set. May raise `OutOfTimeError`."""

    @property
    def hung_s(self) -> float:
        """Seconds since a part of the stage was given up on that has not ended; 0 when there is none, as by default."""
        return 0.0

    def close(self) -> None:
        """Release what the stage holds. Does nothing by default."""
        return
