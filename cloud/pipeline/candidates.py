"""What stages hand on: candidates as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["CandidateSet"]

T = TypeVar("T", bound=np.generic)


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
        return CandidateSet(
            _at(self.item, rows),
            None if self.pxtr is None else _at(self.pxtr, rows),
            None if self.score is None else _at(self.score, rows),
        )


def _at(column: NDArray[T], rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> NDArray[T]:
    """The rows of a column [n, ...]; for places `take` needs half the time of an index."""
    return column[rows] if isinstance(rows, slice) or rows.dtype == np.bool_ else column.take(rows, 0)
