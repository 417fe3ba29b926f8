"""Filters by item attributes and take-downs: the `[filters]` of the pipeline file.

They hold for every page and every channel, also for pages from the cache or of popular items.
"""

from __future__ import annotations

import logging
import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Sequence
from errno import EINVAL
from functools import partial
from pathlib import Path
from stat import S_ISREG
from threading import Lock
from time import monotonic, time
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.vectors.index import AttributeFilter
from pocketrank.device.contract import ID_TEXT_MAX, as_code

__all__ = ["AllowedOrder", "Filters", "FiltersConfig", "RemovedItems"]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
CHECK_S = 0.5
"""Least time in seconds between two looks at the file of removed items."""
SETTLE_S = 2.0
"""Time in seconds for which the file must not change before an item that it no longer names may be shown again: a program that
writes a file anew empties it first."""
_DIGITS_MAX = 19
_ID, _ID_MAX = re.compile(rf"([+-]?)0*([0-9]{{1,{_DIGITS_MAX}}})(?:\.0*)?"), np.iinfo(np.int64).max
_BETWEEN = re.compile(r"[\s,;\"'\[\]]+")
_INVISIBLE = re.compile("[\ufeff\u200b]")  # marks of the encoding, also in the middle, where files were put together
_OTHER = re.compile(rb"[^0-9\s]")
_NONE = np.zeros(0, np.int64)
_NUMBERS = PublishedIds()

_logger = logging.getLogger(__name__)


class FiltersConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[filters]` of the pipeline file."""

    seen: bool = True
    """Whether items that the user has seen are left out."""
    categories: tuple[int, ...] | None = None
    """Codes of the column `category` that may be shown; all when absent."""
    categories_not: tuple[int, ...] = ()
    """Codes of the column `category` that may not be shown."""
    authors: tuple[int | str, ...] | None = None
    """Ids of the authors whose items may be shown, as the team has them; all when absent."""
    authors_not: tuple[int | str, ...] = ()
    """Ids of the authors whose items may not be shown."""
    age_max_days: float | None = None
    """Maximum age of an item since its upload, by this machine's clock, to the hour. Items of unknown age do not pass."""
    removed: str | None = None
    """File with the ids of items that were taken down, one per line; what follows a `#` is a comment. Where ids of items are
    texts, only a line that begins with `#` is one. The file is read again when it changes, so a take-down needs no restart
    (`RemovedItems`)."""

    def __post_init__(self) -> None:
        if self.age_max_days is not None and not self.age_max_days > 0:
            raise ValueError(f"Expected age_max_days above 0, got {self.age_max_days}")


class _Lines(NamedTuple):
    """What a file of ids holds."""

    ids: list[int]
    wrong: int
    """Number of lines that hold anything but ids."""
    first_wrong: str
    """The first of them and its number; empty when there is none."""


def _read_lines(data: bytes) -> _Lines:
    """Return the ids of a file as editors and spreadsheets save it: any line ends and separators, a mark, comments.

    Of a line that holds other text, too, such as the reason, the ids in front of that are read.
    """
    plain = data.split()
    if not _OTHER.search(data) and len(max(plain, key=len, default=b"")) < _DIGITS_MAX:  # as below, in a third of the time
        return _Lines([*map(int, plain)], 0, "")
    encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8"
    ids, wrong, first_wrong = list[int](), 0, ""
    text = _INVISIBLE.sub("", data.decode(encoding, "replace"))
    for number, line in enumerate(text.splitlines(), 1):
        for word in filter(None, _BETWEEN.split(line.partition("#")[0])):
            item = _item_id(word)
            if item is None:
                wrong += 1
                first_wrong = first_wrong or f"line {number}: `{line.strip()[:40]}`"
                break
            ids.append(item)
    return _Lines(ids, wrong, first_wrong)


def _read_texts(data: bytes, code: Callable[[str], int | None]) -> _Lines:
    """Return the codes of a file of ids that are texts, one per line. Those that the run does not know are left out."""
    encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8"
    ids, wrong, first_wrong = list[int](), 0, ""
    for number, line in enumerate(data.decode(encoding, "replace").lstrip("\ufeff").splitlines(), 1):
        text = line.strip()
        if len(text) > ID_TEXT_MAX or "\ufffd" in text:
            wrong += 1
            first_wrong = first_wrong or f"line {number}: `{text[:40]}`"
        elif text and not text.startswith("#") and (found := code(text)) is not None:
            ids.append(found)
    return _Lines(ids, wrong, first_wrong)


def _item_id(word: str) -> int | None:
    """Return the id that a word stands for, `12` or `12.0` as spreadsheets write it; None for any other word."""
    found = _ID.fullmatch(word)
    item = 0 if found is None else int(found[1] + found[2])
    return item if found is not None and abs(item) <= _ID_MAX else None


class RemovedItems:
    """The items that a file names, which is read again when it changes. Safe to call from several threads.

    A take-down holds as soon as its id can be read, whatever else is in the file: lines with other text are counted, and the
    first of them is named once in the log. An item may be shown again only when a file that can be read as a whole, and that
    has not changed for `SETTLE_S`, no longer names it. So neither a file that is missing or damaged nor one that is being
    written lets a removed item through.

    Raises `OSError` when the file cannot be read at the start, and `ValueError` when it holds lines but not one of ids.
    """

    def __init__(self, path: Path, catalogue: Catalogue, code: Callable[[str], int | None] | None = None) -> None:
        """`code` returns the code of an id that is a text, None for an unknown one. Without it ids are whole numbers."""
        self._path, self._catalogue, self._code, self._lock = path, catalogue, code, Lock()
        self._version: tuple[int, int, int] | None = None
        self._is_settled = False
        self._checked_at = self._changed_at = -np.inf
        self._positions = np.zeros(0, np.int64)
        self._error, self._lines = "", _Lines([], 0, "")
        self._read()
        if self._lines.wrong and not self._lines.ids:
            raise ValueError(f"Expected item ids, one per line, got {self._lines.first_wrong} - at {path}")
        self._log(before="")

    @property
    def positions(self) -> NDArray[np.int64]:
        """[r] positions of the removed items; the same array until they change."""
        if monotonic() - self._checked_at > CHECK_S and self._lock.acquire(blocking=False):  # else another thread looks now
            try:
                self._look()
            finally:
                self._lock.release()
        return self._positions

    @property
    def unreadable(self) -> int:
        """Number of lines of the file that are no ids, as of the last look; 1 when the file itself cannot be read."""
        return 1 if self._error else self._lines.wrong

    def check(self) -> None:
        """Raise `ValueError` while the file, or a line of it, cannot be read."""
        _ = self.positions
        if fault := self._fault:
            raise ValueError(fault)

    @property
    def _fault(self) -> str:
        if self._error:
            return f"Expected a file of item ids, got: {self._error} - at {self._path}"
        if wrong := self._lines.wrong:
            return f"Expected item ids, one per line, got {wrong} other lines, {self._lines.first_wrong} - at {self._path}"
        return ""

    def _look(self) -> None:
        before = self._fault
        try:
            self._read()
            self._error = ""
        except OSError as error:  # items removed so far stay removed
            self._error = error.strerror or type(error).__name__
        self._log(before)

    def _log(self, before: str) -> None:
        """Log a fault once, and not at every look."""
        if (fault := self._fault) == before:
            return
        if fault:
            _logger.error("what can be read of the removed items holds, and none is shown again: %s", fault)
        else:
            _logger.warning("the file of removed items can be read again: %s", self._path)

    def _read(self) -> None:
        """Read the file if it changed since, and again once it has settled. Raises `OSError`."""
        self._checked_at = now = monotonic()
        found = os.stat(self._path)
        if not S_ISREG(found.st_mode):  # to open a pipe would wait for its writer
            raise OSError(EINVAL, "Not a regular file")
        version = found.st_mtime_ns, found.st_size, found.st_ino
        if is_new := version != self._version:
            self._changed_at = now
        is_settled = now - self._changed_at >= SETTLE_S
        if not is_new and is_settled == self._is_settled:
            return
        # The second reading also finds a change within one tick of the file system's clock, after which a file looks the same.
        data = self._path.read_bytes()
        self._lines = _read_lines(data) if self._code is None else _read_texts(data, self._code)
        self._version, self._is_settled = version, is_settled
        positions = np.unique(self._catalogue.positions(self._lines.ids))
        if not is_settled or self._lines.wrong:
            positions = np.union1d(self._positions, positions)
        if not np.array_equal(positions, self._positions):
            self._positions = positions


class Filters:
    """Filters over a catalogue. Raises what `RemovedItems` raises when the file of removed items cannot be read."""

    def __init__(self, config: FiltersConfig, catalogue: Catalogue, folder: Path, ids: PublishedIds = _NUMBERS) -> None:
        """A relative path of the file of removed items starts at `folder`. `ids` are the run's dictionaries."""
        self.config, self._catalogue = config, catalogue
        code = partial(ids.code, "item_id") if "item_id" in ids.kinds else None
        self._removed = None if config.removed is None else RemovedItems(folder / config.removed, catalogue, code)
        self._authors = None if config.authors is None else _authors(config.authors, ids)
        self._authors_not = _authors(config.authors_not, ids)
        self._where, self._mask = AttributeFilter(), np.zeros(0, np.bool_)
        self._made_for: tuple[int, int, object] | None = None
        self._both: tuple[object, object, NDArray[np.int64]] | None = None
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
        """[r] positions of removed items, by the file or from the catalogue; the same array until they change."""
        by_file, gone = _NONE if self._removed is None else self._removed.positions, self._catalogue.removed
        if not len(gone):
            return by_file
        if self._both is None or self._both[0] is not by_file or self._both[1] is not gone:
            self._both = by_file, gone, np.union1d(by_file, gone)
        return self._both[2]

    @property
    def unreadable(self) -> int:
        """Number of lines that cannot be read of the file of removed items."""
        return 0 if self._removed is None else self._removed.unreadable

    def check(self) -> None:
        """Raise `ValueError` while the file of removed items, or a line of it, cannot be read."""
        if self._removed is not None:
            self._removed.check()

    def _refresh(self) -> None:
        """Make the filter and the mask again when the hour, the catalogue or the removed items changed since."""
        config, removed = self.config, self.removed
        hour = int(time()) // 3600 if config.age_max_days is not None else 0
        version, made_for = self._catalogue.version, self._made_for
        if made_for is not None and made_for[:2] == (hour, version) and made_for[2] is removed:
            return
        since = None if config.age_max_days is None else hour * _HOUR_MS - round(config.age_max_days * _DAY_MS)
        self._where = AttributeFilter(
            categories=config.categories,
            categories_not=config.categories_not,
            authors=self._authors,
            authors_not=self._authors_not,
            created_from_ms=since,
        )
        mask = self._where.passes(self._catalogue.attributes)
        mask[removed] = False
        mask[0] = False
        self._mask, self._made_for = mask, (hour, version, removed)


def _authors(authors: Sequence[int | str], ids: PublishedIds) -> tuple[int, ...]:
    """Return the codes of authors. The code of a text that no dictionary has is its hash."""
    known = {one: ids.code("author_id", one) for one in authors if isinstance(one, str) and "author_id" in ids.kinds}
    return tuple(as_code(one) if (code := known.get(str(one))) is None else code for one in authors)


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
