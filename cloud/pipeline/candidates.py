"""What stages hand on: candidates as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CandidateSet"]


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """n candidates, best first. A stage makes a new set and leaves the arrays of the old one as they are."""

    item: NDArray[np.int64]
    """[n] positions in the catalogue, without repeats"""
    pxtr: NDArray[np.float32] | None = None
    """[n, K] one probability per task of the catalogue's run; None before ranking"""
    score: NDArray[np.float32] | None = None
    """[n] what they are in order of; None before fusion"""

    def __len__(self) -> int:
        return len(self.item)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> CandidateSet:
        """The candidates at `rows`, in that order: places, a mask or a slice."""
        if isinstance(rows, slice):
            pxtr, score = self.pxtr, self.score
            return CandidateSet(self.item[rows], None if pxtr is None else pxtr[rows], None if score is None else score[rows])
        if rows.dtype == np.bool_:
            rows = rows.nonzero()[0]
        return CandidateSet(  # `take` needs half the time of an index
            self.item.take(rows),
            None if self.pxtr is None else self.pxtr.take(rows, 0),
            None if self.score is None else self.score.take(rows),
        )
