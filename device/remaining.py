"""What a session still holds of its page, as arrays that the model reads in place.

Rows stay packed and in cloud order: taking an item out moves the rows behind it up by one (a few kilobytes), so that a swipe
hands the model a slice and copies nothing per candidate.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from device.features import PageArrays

__all__ = ["Remaining"]

T = TypeVar("T", bound=np.generic)


class Remaining:
    """The candidates of one page that were not shown yet. `count` rows are real; zeros follow up to at least `rows`."""

    def __init__(self, page: PageArrays, rows: int) -> None:
        n = len(page.item_id)
        capacity = max(n, rows)
        self.page = page
        self.count = n
        self.row = np.arange(n)
        """[count ..] place of each in the page"""
        self.item_id = page.item_id.copy()
        self.floats = _padded(page.floats, capacity)
        """[1, capacity, Fc]"""
        self.categories = _padded(page.categories, capacity)
        """[1, capacity, C]"""
        self.vector = None if page.vector is None else _padded(page.vector, capacity)
        """[1, capacity, D]"""

    def take(self, index: int) -> int:
        """Take the candidate at `index` (0 <= index < count) out; its row in the page."""
        row, last = int(self.row[index]), self.count - 1
        if index < last:
            self.row[index:last] = self.row[index + 1 : last + 1]
            self.item_id[index:last] = self.item_id[index + 1 : last + 1]
        for array in (self.floats, self.categories, self.vector):
            if array is not None:
                if index < last:
                    array[0, index:last] = array[0, index + 1 : last + 1]
                array[0, last] = 0
        self.count = last
        return row

    def find(self, item_id: int) -> int | None:
        """Where `item_id` is among the remaining, None when it is not."""
        found = np.flatnonzero(self.item_id[: self.count] == item_id)
        return int(found[0]) if len(found) else None


def _padded(values: NDArray[T], capacity: int) -> NDArray[T]:
    out = np.zeros((1, capacity, values.shape[1]), values.dtype)
    out[0, : len(values)] = values
    return out
