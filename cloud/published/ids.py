"""Positions of ids in published tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["IdLookup"]

_NONE = np.zeros(0, np.int64)
_NONE.flags.writeable = False


class IdLookup:
    """Lookup of positions in `ids` [n], which are ascending and unique, and of ids that were added. Any other id has position
    0, the row of the unknown."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._ids = np.asarray(ids)
        self._added: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ids) + len(self._added)

    def add(self, ids: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Add unknown ids [m] at positions [m]."""
        self._added.update(zip(ids.tolist(), positions.tolist(), strict=True))

    def __call__(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Return the positions [m] of `ids` [m]."""
        if not len(ids):
            return _NONE
        wanted = np.fromiter(ids, np.int64, len(ids))
        at = self._ids.searchsorted(wanted)
        at[at == len(self._ids)] = 0
        at[self._ids[at] != wanted] = 0
        if self._added:
            for i in np.flatnonzero(at == 0).tolist():
                at[i] = self._added.get(int(wanted[i]), 0)
        return at

    def one(self, id: int) -> int:
        """Return the position of one id."""
        at = int(self._ids.searchsorted(id))
        return at if at < len(self._ids) and self._ids[at] == id else self._added.get(id, 0)
