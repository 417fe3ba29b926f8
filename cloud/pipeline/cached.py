"""The last ranking of each user, for pages that there is no time to rank."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

import msgspec
import numpy as np

from pocketrank.cloud.pipeline.candidates import CandidateSet

__all__ = ["CacheConfig", "RankingCache"]

_Key = tuple[int, str | None]


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[cache]` of the pipeline file."""

    users: int = 10_000
    """Maximum number of rankings kept; the one that was used longest ago is evicted. A ranking of 200 candidates and 6 tasks
    takes about 7 kB."""
    candidates: int = 200
    """Number of best candidates kept of a ranking."""
    ttl_s: float = 600.0
    """Age in seconds from which a ranking is not used any more."""

    def __post_init__(self) -> None:
        if self.users < 0 or self.candidates < 1 or not self.ttl_s > 0:
            raise ValueError("Expected users of 0 or more, candidates of 1 or more and ttl_s above 0")


class RankingCache:
    """Rankings by user and experiment. Not for several threads at a time."""

    def __init__(self, config: CacheConfig, clock: Callable[[], float] = monotonic) -> None:
        """`clock` returns seconds."""
        self._config, self._clock = config, clock
        self._kept: OrderedDict[_Key, tuple[float, CandidateSet]] = OrderedDict()

    def keep(self, key: _Key, candidates: CandidateSet) -> None:
        """Keep a ranking; it replaces the last one of the same key."""
        best = np.arange(min(len(candidates), self._config.candidates))  # a slice would keep the memory of the whole ranking
        self._kept[key] = self._clock(), candidates.take(best)
        self._kept.move_to_end(key)
        if len(self._kept) > self._config.users:
            self._kept.popitem(last=False)

    def get(self, key: _Key) -> CandidateSet | None:
        """Return the last ranking of a key; None when there is none or it has expired."""
        kept = self._kept.get(key)
        if kept is None or self._clock() - kept[0] > self._config.ttl_s:
            return None
        self._kept.move_to_end(key)
        return kept[1]
