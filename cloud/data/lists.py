"""Lists of a window of the log: pages, or pseudo-lists of consecutive rows; and short lists of the history before the log."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.entities import column, index_of
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.schema import DataError

__all__ = ["Lists", "run_start"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]
_RANGE = 1 << 22
"""Room for the blocks of days of one user; a log has fewer than 110 years."""


class Lists:
    """L lists of the E events that are `listed`, each of at most N candidates."""

    BEFORE: ClassVar[int] = -(1 << 20)
    """Block of the events from before the log."""

    def __init__(
        self, *, sizes: tuple[int, int], user: Int, item: Int, listed: NDArray[np.bool_], block: Int, page: Int
    ) -> None:
        """`sizes` are the largest of a list, and of one from before the log. `block` [E] is the block of days of an event."""
        (at,) = np.nonzero(listed)
        run = run_start(user[at] * _RANGE + block[at] + _RANGE // 2)
        place = np.arange(len(at)) - run
        size = np.where(block[at] != self.BEFORE, *sizes)
        start = np.where(page[at] >= 0, run_start(page[at]), run + place // size * size)
        begins = start == np.arange(len(at))
        self.of_event = np.full(len(user), -1)
        """[E] list of each event, -1 for those that are not listed"""
        self.of_event[at] = np.cumsum(begins) - 1
        self.slot = np.zeros(len(user), np.int64)
        """[E]"""
        self.slot[at] = np.arange(len(at)) - start
        self.event = at[begins]
        """[L] first event of each list"""
        self.user = user[self.event]
        """[L]"""
        self.paged = page[self.event] >= 0
        """[L] whether it is a real page"""
        self._at, self._free = at, at[page[at] < 0]
        width = int(self.slot[self._free].max(initial=0)) + 1
        self.item = np.zeros((len(self.event), sizes[0] if self.paged.any() else width), np.int32)
        """[L, N] 0 is padding"""
        self.item[self.of_event[self._free], self.slot[self._free]] = item[self._free]

    def fill_pages(self, log: Log, item_ids: Int, item: Int, page: Int) -> None:
        """Set the candidates of real pages. Raises `DataError` for a shown item that is not among them."""
        offers = log.pages.column("item_id").combine_chunks()
        offsets = offers.offsets.to_numpy().astype(np.int64)
        values = index_of(item_ids, offers.values.to_numpy())
        ids = column(log.pages, "page_id", np.int64)
        by_id = np.argsort(ids, kind="stable")
        row = by_id[np.searchsorted(ids[by_id], page[self.event]).clip(0, len(ids) - 1)]
        of_page = np.flatnonzero(self.paged)
        width = self.item.shape[1]
        for target, source in zip(of_page, row[of_page], strict=True):
            offered = values[offsets[source] : offsets[source + 1]][:width]
            self.item[target, : len(offered)] = offered
        paged = self._at[page[self._at] >= 0]
        found = self.item[self.of_event[paged]] == item[paged][:, None]
        if not found.any(1).all():
            raise DataError(log.name, "expected each shown item among its page's candidates", column="page_id")
        self.slot[paged] = found.argmax(1)

    def fill(self, labels: Float, hour: NDArray[np.int8], scene: NDArray[np.int32]) -> None:
        """Set labels, hour, scene and event of the slots of lists, from those of the events [E, ...].

        All candidates of a page have the hour and the scene of its request, at which they were ranked: the hour of an
        impression would reveal which candidates were shown late.
        """
        events, shape = self._at, self.item.shape
        at = self.of_event[events], self.slot[events]
        self.shown = np.where(self.paged[:, None] & (self.item > 0), len(hour), -1)
        """[L, N] see `Samples.list_shown`"""
        self.shown[at] = np.where(self.paged[at[0]], events, -1)
        self.labels = np.full((*shape, labels.shape[1]), np.nan, np.float32)
        """[L, N, K]"""
        self.labels[at] = labels[events]
        self.hour = np.repeat(hour[self.event][:, None], shape[1], 1)
        """[L, N]"""
        self.scene = np.repeat(scene[self.event][:, None], shape[1], 1)
        """[L, N]"""
        place = self.of_event[self._free], self.slot[self._free]
        self.hour[place], self.scene[place] = hour[self._free], scene[self._free]


def run_start(key: Int) -> Int:
    """Return for each element the index of the first one in its run of equal keys."""
    starts = np.concatenate([[True], key[1:] != key[:-1]])
    return np.maximum.accumulate(np.where(starts, np.arange(len(key)), 0))
