"""The candidates that stages pass on, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["CandidateSet"]

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """n candidates, best first. A stage makes a new set and never writes to the arrays of the old one."""

    item: NDArray[np.int64]
    """[n] positions in the catalogue, without repeats"""
    pxtr: NDArray[np.float32] | None = None
    """[n, K] one probability for each task of the catalogue's run; None before ranking"""
    score: NDArray[np.float32] | None = None
    """[n] the fused score that they are sorted by; None before fusion"""
    statistics: NDArray[np.float32] | None = None
    """[n, S] features of the moment (`pocketrank.cloud.data.features`); None where there are none, or before ranking"""
    exploring: NDArray[np.bool_] | None = None
    """[n] whether each has its place by exploration; None where none has"""

    def __len__(self) -> int:
        return len(self.item)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> CandidateSet:
        """Return the candidates at `rows`, in that order: row numbers, a mask or a slice."""
        return CandidateSet(
            _at(self.item, rows),
            None if self.pxtr is None else _at(self.pxtr, rows),
            None if self.score is None else _at(self.score, rows),
            None if self.statistics is None else _at(self.statistics, rows),
            None if self.exploring is None else _at(self.exploring, rows),
        )


def _at(column: NDArray[T], rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> NDArray[T]:
    """Return rows of a column [n, ...]. For row numbers, `take` needs half the time of an index."""
    return column[rows] if isinstance(rows, slice) or rows.dtype == np.bool_ else column.take(rows, 0)
