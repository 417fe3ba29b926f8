"""The published items as stages use them: columns by position. Position 0 is the unknown item."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.ids import IdLookup
from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.vectors.index import AGE_UNKNOWN, Attributes

__all__ = ["Catalogue"]

Int = NDArray[np.int64]


class Catalogue:
    """Columns of I items, with the unknown item at row 0.

    They are plain arrays over the mapped bytes, because indexing a memmap takes several times as long.
    """

    def __init__(self, published: Published, record: PublishedRecord) -> None:
        self.tasks = record.tasks
        """[K] names of the ranker's tasks"""
        self.float_names, self.category_names = record.float_names, record.category_names
        """names of the columns of `floats` and `categories`"""
        self.item_id: Int = np.asarray(published.item_id)
        """[I]"""
        self.floats: NDArray[np.float32] = np.asarray(published.item_float)
        """[I, F] raw units"""
        self.categories: NDArray[np.int32] = np.asarray(published.item_category)
        """[I, C] codes, 0 = unknown"""
        self.author: Int = np.asarray(published.item_author)
        """[I] ids, 0 = unknown"""
        self.upload_ms: Int = np.asarray(published.item_upload_ms)
        """[I], `AGE_UNKNOWN` = unknown"""
        self.popularity: NDArray[np.float32] = np.asarray(published.item_popularity)
        """[I] smoothed rate of the first task"""
        self.positions = IdLookup(published.item_id)
        """from item ids to positions"""

    def __len__(self) -> int:
        return len(self.item_id)

    def category(self, name: str) -> NDArray[np.int32] | None:
        """Return the codes [I] of the categorical column `name`; None when the run does not have it."""
        names = self.category_names
        return self.categories[:, names.index(name)] if name in names else None

    @cached_property
    def attributes(self) -> Attributes:
        """[I] the attributes of the items that filters use"""
        category = self.category("category")
        unknown = np.zeros(len(self), np.int32)
        return Attributes(self.author, unknown if category is None else category, self.upload_ms)

    @cached_property
    def by_popularity(self) -> Int:
        """[I - 1] positions of all items but row 0, the most popular first"""
        return 1 + np.argsort(-self.popularity[1:], kind="stable")

    @cached_property
    def by_freshness(self) -> Int:
        """[f] positions of the items whose upload time is known, the newest first"""
        newest = 1 + np.argsort(-self.upload_ms[1:], kind="stable")
        return newest[self.upload_ms[newest] > AGE_UNKNOWN]
