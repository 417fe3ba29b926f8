"""The seam of the embedding tables: fp16 rows by int64 id, one table a split version, versions side by side.

Errors::

    StoreError                 the store cannot do what was asked; names the store
    ├── UnknownVersionError    no table of this version, or its life is over
    ├── StoreUnavailableError  no answer in time: no network, a dead server, a time-out
    ├── StoreInputError        ids, vectors or a version's name that no table takes; nothing was kept
    ├── StoreWriteError        not kept: disk full, or another process writes
    └── StoreConfigError       a URL that names no store
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "EmbeddingStore",
    "StoredRows",
    "StoreConfigError",
    "StoreError",
    "StoreInputError",
    "StoreUnavailableError",
    "StoreWriteError",
    "TableInfo",
    "UnknownVersionError",
    "as_ids",
    "as_rows",
    "checked_table",
    "is_version",
]

_VERSION = re.compile(r"[A-Za-z0-9._:+=-]{1,128}")
"""Names of versions; they become file names and keys."""

_INT64 = np.dtype(np.int64)

_WIDTH_MAX = 1 << 16
"""A row past 128 KiB is a mistake."""


class StoreError(Exception):
    """The store cannot do what was asked. `where` names the store, `expected` and `got` say what."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at {where}")
        self.where, self.expected, self.got = where, expected, got


class UnknownVersionError(StoreError):
    """There is no table of this version, or its life is over."""


class StoreUnavailableError(StoreError):
    """The store did not answer in time: no network, a dead server, a time-out."""


class StoreInputError(StoreError):
    """Ids, vectors or a version's name are not what a table takes; nothing was kept."""


class StoreWriteError(StoreError):
    """Rows were not kept: the disk is full, or another process writes. StoredRows kept before stay whole."""


class StoreConfigError(StoreError):
    """The URL names no store."""


class StoredRows(NamedTuple):
    """Rows in the order of the ids asked for, n of them, D wide."""

    vectors: NDArray[np.float16]
    """[n, D]; a row not found is zeros."""
    found: NDArray[np.bool_]
    """[n]"""


class TableInfo(NamedTuple):
    """One version's table."""

    width: int
    """D, values a row."""
    rows: int
    """Rows kept now."""
    expires_s: float | None
    """Unix time in seconds at which the version is gone; None: never."""


class EmbeddingStore(ABC):
    """Tables of fp16 rows by any int64 id, one a split version. Safe to call from several threads.

    Readers do not wait for writers, and see each row whole, as it was before or after an update.
    """

    @abstractmethod
    def create(self, version: str, width: int, *, ttl_s: float | None = None) -> None:
        """Make sure that there is a table `width` values wide. One that is there keeps its rows.

        The version's life starts anew: it is gone `ttl_s` seconds from now, or never with None.
        Raises `StoreInputError` for a table of another width, or a name or width that no table takes.
        """

    @abstractmethod
    def versions(self) -> dict[str, TableInfo]:
        """The tables of all versions whose life is not over."""

    @abstractmethod
    def get(self, version: str, ids: NDArray[np.int64], *, deadline_s: float | None = None) -> StoredRows:
        """The rows of `ids` [n], repeats allowed.

        A remote store answers within `deadline_s` seconds from the call or raises `StoreUnavailableError`; with None, each of
        its exchanges has the configured time-out. Raises `UnknownVersionError`.
        """

    @abstractmethod
    def put(self, version: str, ids: NDArray[np.int64], vectors: NDArray[np.floating]) -> None:
        """Keep `vectors` [n, D] under `ids` [n]; of an id's repeats the last one is kept.

        Values are kept as fp16, NaN and infinities as they are. Raises `StoreInputError` for another width or a finite value
        beyond fp16, `UnknownVersionError`, and `StoreWriteError` or `StoreUnavailableError`, after which some of the rows may
        be new and the others are old.
        """

    @abstractmethod
    def delete(self, version: str, ids: NDArray[np.int64]) -> None:
        """Forget the rows of `ids` [n]; unknown ones are no matter. Raises `UnknownVersionError`."""

    @abstractmethod
    def drop(self, version: str) -> None:
        """Forget a version with all its rows; an unknown one is no matter."""

    @abstractmethod
    def scan(self, version: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """All rows in chunks of ids [c] and vectors [c, D], each id once, in no order. Raises `UnknownVersionError`.

        A row that is put or deleted meanwhile comes as it was before or after.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections; a second call does nothing."""


def is_version(name: str) -> bool:
    """Whether a version may be named so."""
    return _VERSION.fullmatch(name) is not None


def checked_table(where: str, version: str, width: int) -> None:
    """Raise `StoreInputError` unless a table may be named and as wide so."""
    if not is_version(version):
        raise StoreInputError(where, f"a version's name of the form {_VERSION.pattern}", repr(version[:200]))
    if not 1 <= width <= _WIDTH_MAX:
        raise StoreInputError(where, f"a width of 1 to {_WIDTH_MAX}", str(width))


def as_ids(where: str, ids: ArrayLike) -> NDArray[np.int64]:
    """`ids` as int64 [n]. Raises `StoreInputError`."""
    array = np.asarray(ids)
    if array.dtype is _INT64 and array.ndim == 1:
        return array
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise StoreInputError(where, "ids int64 [n]", f"{array.dtype} {list(array.shape)}")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise StoreInputError(where, "ids within int64", str(array.max()))
    return array.astype(np.int64)


def as_rows(where: str, ids: ArrayLike, vectors: ArrayLike, width: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Ids [n] without repeats and their last vectors fp16 [n, width]. Raises `StoreInputError`."""
    keys, values = as_ids(where, ids), np.asarray(vectors)
    if values.shape != (len(keys), width) or values.dtype.kind not in "fiu":
        raise StoreInputError(where, f"vectors [{len(keys)}, {width}]", f"{values.dtype} {list(values.shape)}")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values, np.float16)
    if values.dtype != np.float16 and (np.isinf(rows) & np.isfinite(values)).any():
        raise StoreInputError(where, "values within fp16", str(np.abs(values[np.isfinite(values)]).max()))
    unique, last = np.unique(keys[::-1], return_index=True)
    if len(unique) == len(keys):
        return keys, rows
    last = len(keys) - 1 - last
    return keys[last], rows[last]
