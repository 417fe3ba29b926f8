"""From ids to positions in published tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["IdIndex"]


class IdIndex:
    """Positions of `ids` [n], ascending and unique; an id that is not among them is at position 0, the row for the unknown."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._ids = np.asarray(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __call__(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Positions [m] of `ids` [m]."""
        wanted = np.fromiter(ids, np.int64, len(ids))
        at = np.searchsorted(self._ids, wanted).clip(0, len(self._ids) - 1)
        return np.where(self._ids[at] == wanted, at, 0)
