"""The items as stages use them: columns by position. Position 0 is the unknown item.

The catalogue begins as the run published it. Items are put and removed while pages are made, in the thread that makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.live_rows import LiveRows
from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.vectors.index import AGE_UNKNOWN, Attributes

__all__ = ["Catalogue"]

Int = NDArray[np.int64]

_COLUMNS = (
    "item_row", "item_identity", "item_vector", "item_float", "item_category", "item_author", "item_upload_ms",
    "item_popularity",
)  # fmt: skip


class Catalogue:
    """Columns of I items, with the unknown item at row 0.

    They are plain arrays over the mapped bytes, because indexing a memmap takes several times as long. After each change they
    are other arrays, so look them up where they are used.
    """

    def __init__(self, published: Published, record: PublishedRecord) -> None:
        self.tasks = record.tasks
        """[K] names of the ranker's tasks"""
        self.float_names, self.category_names = record.float_names, record.category_names
        """names of the columns of `floats` and `categories`"""
        self.rows = LiveRows(published.item_id, {name: getattr(published, name) for name in _COLUMNS})
        """all columns, by their names in `Published`"""
        self.positions = self.rows.positions
        """from item ids to positions"""
        self.version = 0
        """Number of changes so far."""
        self.removed: Int = np.zeros(0, np.int64)
        """[r] positions of items that were removed; another array after each change"""
        self._orders: dict[str, Int] = {}
        self._show()

    def _show(self) -> None:
        columns = self.rows.columns
        self.item_id: Int = columns["id"]
        """[I]"""
        self.floats: NDArray[np.float32] = columns["item_float"]
        """[I, F] raw units"""
        self.categories: NDArray[np.int32] = columns["item_category"]
        """[I, C] codes, 0 = unknown"""
        self.author: Int = columns["item_author"]
        """[I] ids, 0 = unknown"""
        self.upload_ms: Int = columns["item_upload_ms"]
        """[I], `AGE_UNKNOWN` = unknown"""
        self.popularity: NDArray[np.float32] = columns["item_popularity"]
        """[I] smoothed rate of the first task"""
        category = self.category("category")
        unknown = np.zeros(len(self), np.int32) if category is None else category
        self.attributes = Attributes(self.author, unknown, self.upload_ms)
        """[I] the attributes of the items that filters use"""

    def __len__(self) -> int:
        return self.rows.count

    def category(self, name: str) -> NDArray[np.int32] | None:
        """Return the codes [I] of the categorical column `name`; None when the run does not have it."""
        names = self.category_names
        return self.categories[:, names.index(name)] if name in names else None

    @property
    def by_popularity(self) -> Int:
        """[I - 1] positions of all items but row 0, the most popular first"""
        if "popularity" not in self._orders:
            self._orders["popularity"] = 1 + np.argsort(-self.popularity[1:], kind="stable")
        return self._orders["popularity"]

    @property
    def by_freshness(self) -> Int:
        """[f] positions of the items whose upload time is known, the newest first"""
        if "freshness" not in self._orders:
            newest = 1 + np.argsort(-self.upload_ms[1:], kind="stable")
            self._orders["freshness"] = newest[self.upload_ms[newest] > AGE_UNKNOWN]
        return self._orders["freshness"]

    def put(self, ids: Sequence[int], values: Mapping[str, NDArray[Any]]) -> Int:
        """Put items, known or new ones, with rows of some columns (`LiveRows.put`); return their positions."""
        at = self.rows.put(ids, values)
        if len(self.removed):
            self.removed = np.setdiff1d(self.removed, at)
        self._changed(at)
        return at

    def set_rows(self, ids: Int, values: Mapping[str, NDArray[Any]]) -> None:
        """Change what the ranker sees of items. Unknown ids are left out."""
        known = self.positions(ids.tolist()) > 0
        self.rows.put(ids[known], {name: rows[known] for name, rows in values.items()})
        self._show()

    def remove(self, ids: Sequence[int]) -> Int:
        """Remove items, until they are put again; return their positions. Unknown ids are ignored."""
        at = self.positions(ids)
        at = at[at > 0]
        self.removed = np.union1d(self.removed, at)
        self.version += 1
        return at

    def _changed(self, at: Int) -> None:
        self.version += 1
        self._show()
        keys: dict[str, NDArray[Any]] = {"popularity": -self.popularity, "freshness": -self.upload_ms}
        for name, order in self._orders.items():  # a part of what it takes to sort all
            others = order[~np.isin(order, at)]
            new = at[self.upload_ms[at] > AGE_UNKNOWN] if name == "freshness" else at
            new = new[np.argsort(keys[name][new], kind="stable")]
            places = keys[name][others].searchsorted(keys[name][new], side="left" if name == "freshness" else "right")
            self._orders[name] = np.insert(others, places, new)
