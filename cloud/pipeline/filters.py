"""Filters by item attributes and take-downs: the `[filters]` of the pipeline file.

They hold for every page and every channel, also for pages from the cache or of popular items.
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
"""Least time in seconds between two looks at the file of removed items."""

_logger = logging.getLogger(__name__)


class FiltersConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[filters]` of the pipeline file."""

    seen: bool = True
    """Whether items that the user has seen are left out."""
    categories: tuple[int, ...] | None = None
    """Codes of the column `category` that may be shown; all when absent."""
    categories_not: tuple[int, ...] = ()
    """Codes of the column `category` that may not be shown."""
    authors: tuple[int, ...] | None = None
    """Ids of the authors whose items may be shown; all when absent."""
    authors_not: tuple[int, ...] = ()
    """Ids of the authors whose items may not be shown."""
    age_max_days: float | None = None
    """Maximum age of an item since its upload, by this machine's clock, to the hour. Items of unknown age do not pass."""
    removed: str | None = None
    """File with the ids of items that were taken down, one per line. It is read again when it changes, so a take-down needs no
    restart."""

    def __post_init__(self) -> None:
        if self.age_max_days is not None and not self.age_max_days > 0:
            raise ValueError(f"Expected age_max_days above 0, got {self.age_max_days}")


class Filters:
    """Filters over a catalogue. Raises `OSError` or `ValueError` when the file of removed items cannot be read."""

    def __init__(self, config: FiltersConfig, catalogue: Catalogue, folder: Path) -> None:
        """A relative path of the file of removed items starts at `folder`."""
        self.config, self._catalogue = config, catalogue
        self._path = None if config.removed is None else folder / config.removed
        self._file_version: tuple[int, int, int] | None = None
        self._checked_at = -np.inf
        self._removed = np.zeros(0, np.int64)
        self._where, self._mask = AttributeFilter(), np.zeros(0, np.bool_)
        self._made_for: tuple[int, object] | None = None
        if self._path is not None:
            self._read(self._path)
        self._refresh()

    @property
    def where(self) -> AttributeFilter:
        """The filter for an index, which does not know removed items."""
        self._refresh()
        return self._where

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """[I] whether each position may be shown. Removed items may not. Do not write to it."""
        self._refresh()
        return self._mask

    @property
    def removed(self) -> NDArray[np.int64]:
        """[r] positions of removed items."""
        if self._path is not None and monotonic() - self._checked_at > CHECK_S:
            try:
                self._read(self._path)
            except (OSError, ValueError) as error:  # items removed so far stay removed
                _logger.error("the file of removed items cannot be read: %s", error)
        return self._removed

    def _read(self, path: Path) -> None:
        self._checked_at = monotonic()
        found = os.stat(path)
        version = found.st_mtime_ns, found.st_size, found.st_ino
        if version != self._file_version:
            try:
                ids = [int(line) for line in path.read_text("utf-8").split()]
            except ValueError as error:
                raise ValueError(f"Expected item ids, one per line, got: {error} - at {path}") from error
            self._removed = np.unique(self._catalogue.positions(ids))
            self._file_version = version

    def _refresh(self) -> None:
        """Make the filter and the mask again when the hour or the removed items changed since."""
        config, removed = self.config, self.removed
        hour = int(time()) // 3600 if config.age_max_days is not None else 0
        if self._made_for is not None and self._made_for[0] == hour and self._made_for[1] is removed:
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
        self._mask, self._made_for = mask, (hour, removed)


class AllowedOrder:
    """Best allowed items of a fixed order, such as all items by popularity."""

    def __init__(self, filters: Filters, order: Callable[[], NDArray[np.int64]]) -> None:
        """`order` returns positions, best first. It is called again whenever the filters change."""
        self._filters, self._order = filters, order
        self._mask: NDArray[np.bool_] | None = None
        self._allowed = np.zeros(0, np.int64)

    def __call__(self, exclude: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Return up to `k` positions, none of which is in `exclude` [x] or filtered out."""
        mask = self._filters.allowed
        if mask is not self._mask:
            order = self._order()
            self._allowed, self._mask = order[mask[order]], mask
        head = self._allowed[: k + len(exclude)]
        return head[~np.isin(head, exclude)][:k]
