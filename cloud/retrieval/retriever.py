"""Which items are worth ranking for a user: the nearest to the user's vector, and the popular ones while little is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.retrieval.index import VectorIndex

__all__ = ["Retriever", "RetrieverConfig"]


@dataclass(frozen=True)
class RetrieverConfig:
    """How many candidates, and from where."""

    candidates: int = 500
    """Candidates to rank, at most."""
    cold_events: int = 5
    """A user with fewer known events is cold."""
    cold_popular_share: float = 0.5
    """Share of a cold user's candidates that come from the popular channel."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.cold_events < 0 or not 0 <= self.cold_popular_share <= 1:
            raise ValueError(f"Expected candidates >= 1, cold_events >= 0 and a share in 0..1, got {self}")


class Retriever:
    """Merges the channels. `popularity` is [I] over the same positions as `index`."""

    def __init__(self, index: VectorIndex, popularity: NDArray[np.float32], config: RetrieverConfig) -> None:
        self._index, self._config = index, config
        self._popular = np.argsort(-popularity, kind="stable")

    def __call__(self, user_vector: NDArray[np.float32], events: int, exclude: NDArray[np.int64]) -> NDArray[np.int64]:
        """Up to `candidates` positions without repeats, none of them in `exclude`, for a user with so many known events.

        A cold user's popular items come first, then the nearest; a warm user's are the nearest alone.
        """
        wanted = self._config.candidates
        nearest = self._index.search(user_vector, wanted, exclude=exclude).ids
        if events >= self._config.cold_events:
            return nearest
        allowed = np.ones(len(self._popular), np.bool_)
        allowed[exclude] = False
        popular = self._popular[allowed[self._popular]][: round(wanted * self._config.cold_popular_share)]
        allowed[popular] = False
        return np.concatenate([popular, nearest[allowed[nearest]]])[:wanted]
