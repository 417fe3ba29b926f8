"""What a session still holds of its page, as arrays that the model reads in place.

Rows stay packed and in cloud order: taking an item out moves the rows behind it up by one (a few kilobytes), so that a swipe
hands the model a slice and copies nothing per candidate.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.model.features import PageArrays

__all__ = ["Remaining"]

T = TypeVar("T", bound=np.generic)


class Remaining:
    """The candidates of one page that were not shown yet. `count` rows are real; zeros follow up to at least `rows`."""

    def __init__(self, page: PageArrays, rows: int) -> None:
        n = len(page.item_id)
        capacity = max(n, rows)
        self.page = page
        self.count = n
        self._ids = np.stack([np.arange(n), page.item_id])
        self.row, self.item_id = self._ids
        """[count ..] places in the page, and ids"""
        self.floats, floats = _padded(page.floats, capacity)
        """[1, capacity, Fc]"""
        self.categories, categories = _padded(page.categories, capacity)
        """[1, capacity, C]"""
        self._flat: list[tuple[NDArray[Any], int]] = [floats, categories]
        self.vector: NDArray[np.float32] | None = None
        """[1, capacity, D]"""
        self.state: NDArray[np.float32] | None = None
        """[1, capacity, S], what a model's stage `page` made of them"""
        if page.vector is not None:
            self.vector, vector = _padded(page.vector, capacity)
            self._flat.append(vector)

    def attach(self, state: NDArray[np.float32]) -> None:
        """Keep the `page_state` [count, S] of what is left beside it."""
        self.state, flat = _padded(state, self.floats.shape[1])
        self._flat.append(flat)

    def take(self, index: int) -> int:
        """Take the candidate at `index` (0 <= index < count) out; its row in the page."""
        row, last = int(self.row[index]), self.count - 1
        if index < last:
            self._ids[:, index:last] = self._ids[:, index + 1 : last + 1]
        for flat, width in self._flat:
            # One axis: such a shift needs no copy in between. The zeros behind the last row move up with it.
            flat[index * width : (last + 1) * width] = flat[(index + 1) * width : (last + 2) * width]
        self.count = last
        return row

    def copy(self) -> Remaining:
        """The same in memory of its own."""
        new = Remaining(self.page, self.floats.shape[1])
        kept = set(self.row[: self.count].tolist())
        for row in reversed(range(new.count)):
            if row not in kept:
                new.take(row)
        if self.state is not None:
            new.attach(self.state[0, : self.count].copy())
        return new

    def find(self, item_id: int) -> int | None:
        """Where `item_id` is among the remaining, None when it is not."""
        found = np.flatnonzero(self.item_id[: self.count] == item_id)
        return int(found[0]) if len(found) else None


def _padded(values: NDArray[T], capacity: int) -> tuple[NDArray[T], tuple[NDArray[T], int]]:
    """`values` with zeros up to `capacity`, as [1, capacity, width]; and flat with one more row of zeros, and the width."""
    rows, width = values.shape
    flat = np.zeros((capacity + 1) * width, values.dtype)
    flat[: rows * width] = values.reshape(-1)
    return flat[: capacity * width].reshape(1, capacity, width), (flat, width)
