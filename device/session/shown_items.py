"""Record of the items that a session and the sessions before it have shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Page
from pocketrank.device.model.features import PageArrays

__all__ = ["ShownItem", "ShownItems"]


class ShownItem(NamedTuple):
    """An item that was shown."""

    page: Page
    """the page that the item came from"""
    arrays: PageArrays
    """that page as the models in use read it"""
    row: int
    """row of the item in `arrays`"""
    shown_ms: int
    """time when it was shown, by the session's steady clock"""
    ahead_ms: int
    """by how much that clock was ahead of the device's wall clock then"""
    shipped: NDArray[np.float32] | None
    """[K] probabilities by the shipped model when the item was shown; None once they have taught the user's own layer, or when
    there are none"""


class ShownItems:
    """The last `shown_max` items of this session by id, and the ids that earlier sessions had shown.

    Not for use from several threads at once.
    """

    def __init__(self, shown_max: int, earlier: Iterable[int]) -> None:
        self._shown_max = shown_max
        self._items: dict[int, ShownItem] = {}  # oldest first
        self._earlier = dict.fromkeys(earlier)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._items

    def get(self, item_id: int) -> ShownItem | None:
        """Return the item of this session with that id; None when it was not shown or is no longer remembered."""
        return self._items.get(item_id)

    @property
    def known(self) -> Set[int]:
        """Ids of all items that must not be shown again."""
        return self._items.keys() | self._earlier.keys()

    @property
    def exclude(self) -> tuple[int, ...]:
        """Ids for `PageRequest.exclude`: those of earlier sessions, then those of this one, oldest first."""
        return (*self._earlier, *self._items)

    def add(self, item_id: int, item: ShownItem) -> None:
        """Remember a shown item. Beyond `shown_max` items the oldest is evicted."""
        self._items[item_id] = item
        if len(self._items) > self._shown_max:
            del self._items[next(iter(self._items))]

    def learned(self, item_id: int) -> None:
        """Drop the item's shipped probabilities, so that an impression teaches once."""
        self._items[item_id] = self._items[item_id]._replace(shipped=None)

    def read_again(self, read: Callable[[Page], PageArrays]) -> None:
        """Replace the arrays of all items by those that `read` makes of their pages."""
        # Each page is read once, however many of its items were shown.
        pages = {id(item.page): item.page for item in self._items.values()}
        arrays = {key: read(page) for key, page in pages.items()}
        rows = {key: {item: row for row, item in enumerate(a.item_id.tolist())} for key, a in arrays.items()}
        for item_id, item in self._items.items():
            key = id(item.page)
            # What another model predicted for an item cannot teach a layer over this one.
            self._items[item_id] = item._replace(arrays=arrays[key], row=rows[key][item_id], shipped=None)
