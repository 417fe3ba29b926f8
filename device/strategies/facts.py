"""Facts that strategies may read: the current page, what was shown before, and what the player has buffered.

Attributes are read by name from the page's own columns, not through a model's spec, which replaces codes that its vocabulary
lacks. They are plain lists: a swipe looks up a few values, for which numpy is slow.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.codec import from_block, from_columns
from pocketrank.device.contract import BlockError, Page

__all__ = ["RECENT_MAX", "Facts", "Value"]

Value: TypeAlias = int | float | None
"""One attribute of one item. None is unknown: code 0, NaN, or an item of a page without the column."""

RECENT_MAX = 64
"""Number of shown items whose vectors are kept after their page was replaced: 16 kB for vectors of width 64."""

_Vectors: TypeAlias = NDArray[np.float32]


class _Track:
    """One attribute of the rows of the page, and of the items that were shown."""

    def __init__(self, values: list[Value], position: int) -> None:
        self.values = values
        self.shown: list[Value] = [None] * position
        self.counts: defaultdict[Value, int] | None = None  # None until they are needed


class Facts:
    """Facts of one session, which its strategies read. Only the session's `Slate` changes them.

    A row is a place among the candidates that were taken with the page. A position counts the session's impressions from 0.
    """

    def __init__(self, position: int = 0) -> None:
        self.position = position
        """Position of the next impression."""
        self.item_ids: list[int] = []
        """Item id of each row."""
        self.buffered: dict[int, int] = {}
        """Row → bytes of each item that the player has loaded and not shown, in the player's order."""
        self.reserved: dict[int, int] = {}
        """Position → row for which a rule reserves it. A rule reads those of higher priority and may add its own."""
        self.missing: set[str] = set()
        """Columns that strategies read and the page does not have."""
        self._page: Page | None = None
        self._raw: list[int] = []  # row → place in the page's columns, -1 for an item that is not in them
        self._columns: dict[str, NDArray[Any]] = {}
        self._tracks: dict[str, _Track] = {}
        self._vectors: _Vectors | None = None
        self._rows_shown: list[int] = []
        self._recent: list[tuple[str | None, _Vectors | None]] = []  # split version and vector of what earlier pages showed

    # ------------------------------------------------------------------------------------------------------ for strategies

    def values(self, column: str) -> list[Value] | None:
        """Return the attribute by row, of the category of that name or else of the float. None when the page has neither."""
        if column not in self._columns:
            self.missing.add(column)
            return None
        return self._track(column).values

    def shown(self, column: str) -> list[Value]:
        """Return the attribute of what was shown, by position: one list for the whole session, which keeps growing."""
        return self._track(column).shown

    def counts(self, column: str) -> defaultdict[Value, int]:
        """Return how often each value was shown in the session. The counts keep growing too."""
        track = self._track(column)
        if track.counts is None:
            track.counts = defaultdict(int, Counter(track.shown))
        return track.counts

    def vectors(self) -> _Vectors | None:
        """Return the items' vectors f32 [n, D], of length 1, or 0 for an item without one. None for a page without vectors."""
        if self._vectors is None and self._page is not None and (block := self._page.candidates.vector) is not None:
            try:
                vectors = from_block(block, dtype="f2", ndim=2)
            except BlockError:
                return None
            if len(vectors) > max(self._raw, default=-1):
                vectors = np.nan_to_num(vectors.astype(np.float32), nan=0, posinf=0, neginf=0)
                vectors = np.concatenate([vectors, np.zeros_like(vectors, shape=(1, vectors.shape[1]))])[self._raw]
                length = np.sqrt(np.vecdot(vectors, vectors))[:, None]
                self._vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
        return self._vectors

    def recent(self, items_max: int) -> _Vectors:
        """Return `vectors` [m, D] of the last `items_max` items shown before this page, if they are of its split version."""
        vectors = self.vectors()
        if vectors is None or self._page is None:
            return np.zeros((0, 0), np.float32)
        like = (self._page.split_version, vectors.shape[1])
        recent = self._recent[-items_max:] if items_max else []
        known = [v for version, v in recent if v is not None and (version, len(v)) == like]
        return np.stack(known) if known else vectors[:0]

    # ------------------------------------------------------------------------------------------------------- for the slate

    def take(self, page: Page, item_ids: Iterable[int]) -> list[int]:
        """Replace the held items by these items of `page`. Return the sizes of buffered items that are not among them."""
        buffered = {self.item_ids[row]: size for row, size in self.buffered.items()}
        version = None if self._page is None else self._page.split_version
        self._recent += [(version, None if self._vectors is None else self._vectors[row]) for row in self._rows_shown]
        del self._recent[:-RECENT_MAX]
        self._page, self._vectors, self._rows_shown, self.reserved = page, None, [], {}
        self.item_ids = list(item_ids)
        self._columns, self._raw = self._read(page)
        for name, track in self._tracks.items():
            track.values = self._values(name)
        row_of = {item: row for row, item in enumerate(self.item_ids)}
        self.buffered = {row_of[item]: size for item, size in buffered.items() if item in row_of}
        return [size for item, size in buffered.items() if item not in row_of]

    def show(self, row: int) -> None:
        """Record that the candidate in `row` is shown at `position`."""
        for track in self._tracks.values():
            value = track.values[row]
            track.shown.append(value)
            if track.counts is not None:
                track.counts[value] += 1
        self._rows_shown.append(row)
        self.buffered.pop(row, None)
        self.position += 1

    def mark(self) -> tuple[int, dict[int, int]]:
        """Return `position` and `buffered`, to which `rewind` returns after looking ahead."""
        return self.position, dict(self.buffered)

    def rewind(self, position: int, buffered: dict[int, int]) -> None:
        """Undo what was shown since `mark` returned these."""
        back = self.position - position
        for track in self._tracks.values():
            for _ in range(back):
                value = track.shown.pop()
                if track.counts is not None:
                    track.counts[value] -= 1
        del self._rows_shown[len(self._rows_shown) - back :]
        self.position = position
        # In place, since rules' tests keep a reference.
        self.buffered.clear()
        self.buffered.update(buffered)

    def _read(self, page: Page) -> tuple[dict[str, NDArray[Any]], list[int]]:
        c = page.candidates
        try:
            known: list[int] = from_block(c.item_id, dtype="i8", ndim=1).tolist()
            floats = from_columns(c.floats, "$", dtype="f4", rows=len(known))
            codes = from_columns(c.categories, "$", dtype="i4", rows=len(known))
        except BlockError:
            return {}, [-1] * len(self.item_ids)
        columns = dict(zip(c.floats.names + c.categories.names, (*floats.T, *codes.T), strict=True))
        place = {item: len(known) - 1 - i for i, item in enumerate(reversed(known))}  # a repeated item has its first place
        return columns, [place.get(item, -1) for item in self.item_ids]

    def _track(self, column: str) -> _Track:
        track = self._tracks.get(column)
        if track is None:
            track = self._tracks[column] = _Track(self._values(column), self.position)
        return track

    def _values(self, column: str) -> list[Value]:
        values = self._columns.get(column)
        if values is None:
            return [None] * len(self._raw)
        unknown = 0 if values.dtype.kind == "i" else None
        known = [None if v != v or v == unknown else v for v in values.tolist()]
        known.append(None)  # where -1 points to
        return [known[place] for place in self._raw]
