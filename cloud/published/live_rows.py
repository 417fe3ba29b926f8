"""Rows of a published table that change and grow while pages are made.

A process maps the published files and shares their memory with others until the first change; then it has a copy of its own,
with room for more rows. Rows change in the thread that makes pages, between two pages: so a page sees each row whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.ids import IdLookup

__all__ = ["LiveRows"]

Int = NDArray[np.int64]

_GROWTH = 1.25
_ROOM_MIN = 1024
"""Smallest number of rows by which a table grows."""


class LiveRows:
    """Columns of n rows, of which row 0 stands for unknown ids. Positions never change, and are never given to another id."""

    def __init__(self, ids: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> None:
        """`ids` [n] are ascending, and each column has a row for each."""
        self._base = {"id": np.asarray(ids), **{name: np.asarray(column) for name, column in columns.items()}}
        """The rows of the run, as they were published."""
        self._all = self._base
        """With room for more rows, once anything has changed."""
        self.count = len(ids)
        """Number of rows, row 0 included."""
        self.positions = IdLookup(self._base["id"])
        """From ids to positions; an unknown id has position 0."""
        self.columns: dict[str, NDArray[Any]] = dict(self._base)
        """[n, ...] by name, `id` among them. They are other arrays after each change; do not write to them."""

    @property
    def published(self) -> int:
        """Number of rows that the run has, row 0 included."""
        return len(self._base["id"])

    def make_room(self, more: int) -> None:
        """Copy the rows to where they can be changed and so many be added, unless they are. May be called by another thread
        than the one that changes them, when that changes none meanwhile."""
        room = len(self._all["id"])
        if self._all is not self._base and self.count + more <= room:
            return
        rows = max(self.count + more, int(_GROWTH * self.count), self.count + _ROOM_MIN)
        larger = {}
        for name, column in self._all.items():
            larger[name] = np.zeros((rows, *column.shape[1:]), column.dtype)
            larger[name][: self.count] = column[: self.count]
        self._all = larger
        self._show()

    def put(self, ids: Sequence[int] | Int, values: Mapping[str, NDArray[Any]]) -> Int:
        """Change the rows of `ids` [m], without repeats, and add those of unknown ids; return their positions.

        `values` has rows [m, ...] of some columns. The others of a new row are zero.
        """
        ids = np.asarray(ids, np.int64)
        at = self.positions(ids.tolist())
        new = at == 0
        if added := int(new.sum()):
            self.make_room(added)
            at[new] = np.arange(self.count, self.count + added)
            self._all["id"][at[new]] = ids[new]
            self.positions.add(ids[new], at[new])
            self.count += added
        else:
            self.make_room(0)
        for name, rows in values.items():
            self._all[name][at] = rows
        self._show()
        return at

    def restore(self, ids: Sequence[int] | Int, names: Sequence[str], fill: int = 0) -> Int:
        """Give rows of `ids` the values of the run in these columns, and those that the run does not have the values of row
        `fill`; return the positions of the known ones."""
        at = self.positions(np.asarray(ids, np.int64).tolist())
        at = at[at > 0]
        if len(at):
            self.make_room(0)
            known = at < self.published
            for name in names:
                self._all[name][at[known]] = self._base[name][at[known]]
                self._all[name][at[~known]] = self._base[name][fill]
            self._show()
        return at

    def _show(self) -> None:
        self.columns = {name: column[: self.count] for name, column in self._all.items()}
