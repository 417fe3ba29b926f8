"""Candidates of a page that a session has not shown yet, as arrays that the model reads in place.

Rows stay packed and in cloud order: taking an item out moves the rows behind it up by one (a few kilobytes). So a swipe passes
the model a slice and copies nothing per candidate.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.model.features import PageArrays

__all__ = ["Remaining"]

T = TypeVar("T", bound=np.generic)


class Remaining:
    """Candidates of one page that were not shown yet. The first `count` rows are real; zeros follow, up to at least `rows`."""

    def __init__(self, page: PageArrays, rows: int) -> None:
        n = len(page.item_id)
        capacity = max(n, rows)
        self.page = page
        self.count = n
        alike = _alike(page)
        self._ids = np.stack([np.arange(n), page.item_id, *([] if alike is None else [alike])])
        self.row, self.item_id = self._ids[:2]
        """[n] of which `count` are real: rows of the page, and item ids"""
        self._alike = None if alike is None else self._ids[2]
        self.floats, floats = _padded(page.floats, capacity)
        """[1, capacity, Fc]"""
        self.categories, categories = _padded(page.categories, capacity)
        """[1, capacity, C]"""
        self._flat: list[tuple[NDArray[Any], int]] = [floats, categories]
        self.vector: NDArray[np.float32] | None = None
        """[1, capacity, D]"""
        self.state: NDArray[np.float32] | None = None
        """[1, capacity, S] computed by the model's stage `page`"""
        if page.vector is not None:
            self.vector, vector = _padded(page.vector, capacity)
            self._flat.append(vector)

    def attach(self, state: NDArray[np.float32]) -> None:
        """Store the `page_state` [count, S] of the remaining candidates."""
        self.state, flat = _padded(state, self.floats.shape[1])
        self._flat.append(flat)

    def take(self, index: int) -> int:
        """Remove the candidate at `index` (0 <= index < count) and return its row in the page."""
        row, last = int(self.row[index]), self.count - 1
        if index < last:
            self._ids[:, index:last] = self._ids[:, index + 1 : last + 1]
        for flat, width in self._flat:
            # On one axis numpy shifts without a copy in between. The zeros behind the last row move up with it.
            flat[index * width : (last + 1) * width] = flat[(index + 1) * width : (last + 2) * width]
        self.count = last
        return row

    def copy(self) -> Remaining:
        """Return a copy that shares no memory with this one, except the page."""
        new = Remaining(self.page, self.floats.shape[1])
        kept = set(self.row[: self.count].tolist())
        for row in reversed(range(new.count)):
            if row not in kept:
                new.take(row)
        if self.state is not None:
            new.attach(self.state[0, : self.count])
        return new

    def alike(self, count: int) -> NDArray[np.intp] | None:
        """Return for each of the first `count` candidates the index of the first one with equal features; None when no two have
        equal ones.
        """
        if self._alike is None:
            return None
        _, first, of = np.unique(self._alike[:count], return_index=True, return_inverse=True)
        return first[of] if len(first) < count else None

    def find(self, item_id: int) -> int | None:
        """Return the index of `item_id` among the remaining candidates, or None."""
        found = np.flatnonzero(self.item_id[: self.count] == item_id)
        return int(found[0]) if len(found) else None


def _alike(page: PageArrays) -> NDArray[np.int64] | None:
    """Return for each candidate [n] the row of the first one with equal features; None when no two have equal ones."""
    # Most pages have a probability that differs everywhere, which takes a tenth of the time to see.
    if page.floats.shape[1] and len(set(page.floats[:, 0].tolist())) == len(page.floats):
        return None
    # A sum with 0 turns -0 into 0. Codes are compared as the bytes that they are.
    columns = [page.floats + np.float32(0), page.categories.view(np.float32)]
    if page.vector is not None:
        columns.append(page.vector + np.float32(0))
    rows = np.concatenate(columns, axis=1)
    data, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    first: dict[bytes, int] = {}
    alike = [first.setdefault(data[row * width : (row + 1) * width], row) for row in range(len(rows))]
    return np.array(alike) if len(first) < len(rows) else None


def _padded(values: NDArray[T], capacity: int) -> tuple[NDArray[T], tuple[NDArray[T], int]]:
    """Return `values` padded with zeros as [1, capacity, width], then the same memory flat with one more row, and the width."""
    rows, width = values.shape
    flat = np.zeros((capacity + 1) * width, values.dtype)
    flat[: rows * width] = values.reshape(-1)
    return flat[: capacity * width].reshape(1, capacity, width), (flat, width)
