"""What may be shown at all, whichever channel it came from: the `[filters]` of the pipeline file.

They hold for every page, also one from the cache or of popular items.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, time

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.vectors.index import AttributeFilter

__all__ = ["AllowedOrder", "Filters", "FiltersConfig"]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
CHECK_S = 0.5
"""The file of removed items is looked at no more often."""

_logger = logging.getLogger(__name__)


class FiltersConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[filters]` may hold."""

    seen: bool = True
    """Leave out what the user has seen."""
    categories: tuple[int, ...] | None = None
    """Codes of the column `category` that may be shown; all when absent."""
    categories_not: tuple[int, ...] = ()
    """Codes that may not."""
    authors: tuple[int, ...] | None = None
    """Ids of the authors whose items may be shown; all when absent."""
    authors_not: tuple[int, ...] = ()
    """Ids of those whose items may not."""
    age_max_days: float | None = None
    """Oldest item by its upload, to the hour, on this machine's clock. One of unknown age does not pass."""
    removed: str | None = None
    """File of item ids, one a line, that were taken down. It is read anew when it changes: a take-down needs no restart."""

    def __post_init__(self) -> None:
        if self.age_max_days is not None and not self.age_max_days > 0:
            raise ValueError(f"expected age_max_days above 0, got {self.age_max_days}")


class Filters:
    """The filters over a catalogue. Raises `OSError` or `ValueError` when the file of removed items cannot be read."""

    def __init__(self, config: FiltersConfig, catalogue: Catalogue, folder: Path) -> None:
        """`folder` is where a relative path starts."""
        self.config, self._catalogue = config, catalogue
        self._path = None if config.removed is None else folder / config.removed
        self._stamp: tuple[int, int, int] | None = None
        self._looked = -np.inf
        self._removed = np.zeros(0, np.int64)
        self._where, self._mask = AttributeFilter(), np.zeros(0, np.bool_)
        self._made: tuple[int, object] | None = None
        if self._path is not None:
            self._read(self._path)
        self._refresh()

    @property
    def where(self) -> AttributeFilter:
        """What an index may find."""
        self._refresh()
        return self._where

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """[I] whether a position may be shown; removed items may not. Not to be written to."""
        self._refresh()
        return self._mask

    @property
    def removed(self) -> NDArray[np.int64]:
        """[r] positions of removed items."""
        if self._path is not None and monotonic() - self._looked > CHECK_S:
            try:
                self._read(self._path)
            except (OSError, ValueError) as error:  # what was removed stays so
                _logger.error("the file of removed items cannot be read: %s", error)
        return self._removed

    def _read(self, path: Path) -> None:
        self._looked = monotonic()
        told = os.stat(path)
        stamp = told.st_mtime_ns, told.st_size, told.st_ino
        if stamp != self._stamp:
            try:
                ids = [int(line) for line in path.read_text("utf-8").split()]
            except ValueError as error:
                raise ValueError(f"Expected item ids, one a line, got: {error} - at {path}") from error
            self._removed = np.unique(self._catalogue.positions(ids))
            self._stamp = stamp

    def _refresh(self) -> None:
        config, removed = self.config, self.removed
        hour = int(time()) // 3600 if config.age_max_days is not None else 0
        made = hour, removed
        if self._made is not None and self._made[0] == hour and self._made[1] is removed:
            return
        since = None if config.age_max_days is None else hour * _HOUR_MS - round(config.age_max_days * _DAY_MS)
        self._where = AttributeFilter(
            categories=config.categories,
            categories_not=config.categories_not,
            authors=config.authors,
            authors_not=config.authors_not,
            created_from_ms=since,
        )
        mask = self._where.passes(self._catalogue.attributes)
        mask[removed] = False
        mask[0] = False
        self._mask, self._made = mask, made


class AllowedOrder:
    """The first of a fixed order that may be shown, such as of all items by popularity."""

    def __init__(self, filters: Filters, order: Callable[[], NDArray[np.int64]]) -> None:
        """`order` gives positions, best first."""
        self._filters, self._order = filters, order
        self._mask: NDArray[np.bool_] | None = None
        self._allowed = np.zeros(0, np.int64)

    def __call__(self, exclude: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Up to `k` positions, none of which is in `exclude` [x] or filtered out."""
        mask = self._filters.allowed
        if mask is not self._mask:
            order = self._order()
            self._allowed, self._mask = order[mask[order]], mask
        head = self._allowed[: k + len(exclude)]
        return head[~np.isin(head, exclude)][:k]
