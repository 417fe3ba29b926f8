"""Interface of the embedding stores: tables of fp16 rows by int64 id, one table for each split version.

Errors::

    StoreError                 the store failed; names the store
    ├── UnknownVersionError    there is no table of this version, or it has expired
    ├── StoreUnavailableError  no answer in time: no network, a server that is down, a time-out
    ├── StoreInputError        invalid ids, vectors, width or name of a version; nothing was written
    ├── StoreWriteError        rows were not written: the disk is full, or another process is the writer
    └── StoreConfigError       the URL names no store
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketrank.device.contract import MismatchError

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
"""Form of the names of versions, which become file names and keys."""

_INT64 = np.dtype(np.int64)

_WIDTH_MAX = 1 << 16
"""Largest width: a row beyond 128 KiB is taken for a mistake."""


class StoreError(MismatchError):
    """The store failed. `where` names the store."""


class UnknownVersionError(StoreError):
    """There is no table of this version, or it has expired."""


class StoreUnavailableError(StoreError):
    """The store did not answer in time: no network, a server that is down, a time-out."""


class StoreInputError(StoreError):
    """Ids, vectors, width or the name of a version are invalid; nothing was written."""


class StoreWriteError(StoreError):
    """Rows were not written: the disk is full, or another process is the writer. Earlier rows stay whole."""


class StoreConfigError(StoreError):
    """The URL names no store."""


class StoredRows(NamedTuple):
    """Rows of n ids, in their order, D wide."""

    vectors: NDArray[np.float16]
    """[n, D]; a row that was not found is zeros."""
    found: NDArray[np.bool_]
    """[n] whether each id has a row"""


class TableInfo(NamedTuple):
    """Size and expiry of a version's table."""

    width: int
    """D, the number of values in a row."""
    rows: int
    """Number of rows."""
    expires_s: float | None
    """Unix time in seconds at which the version expires; None: never."""


class EmbeddingStore(ABC):
    """Tables of fp16 rows by any int64 id, one for each split version. Stores are thread-safe.

    Readers do not wait for writers, and see each row whole, as it was before or after an update.
    """

    @abstractmethod
    def create(self, version: str, width: int, *, ttl_s: float | None = None) -> None:
        """Create a table `width` values wide, unless there is one, which keeps its rows.

        The version expires `ttl_s` seconds from now, or never with None, whatever its expiry was before. Raises
        `StoreInputError` for a table of another width, or an invalid name or width, and `StoreWriteError` or
        `StoreUnavailableError`.
        """

    @abstractmethod
    def versions(self) -> dict[str, TableInfo]:
        """Return the tables of all versions that have not expired."""

    @abstractmethod
    def get(self, version: str, ids: NDArray[np.int64], *, deadline_s: float | None = None) -> StoredRows:
        """Return the rows of `ids` [n], which may repeat.

        A remote store answers within `deadline_s` seconds or raises `StoreUnavailableError`; with None, each of its exchanges
        has the configured time-out. Raises `UnknownVersionError`.
        """

    @abstractmethod
    def put(self, version: str, ids: NDArray[np.int64], vectors: NDArray[np.floating]) -> None:
        """Write `vectors` [n, D] under `ids` [n]; of the rows of a repeated id the last is kept.

        Values are rounded to fp16; NaN and infinities are kept. Raises `StoreInputError` for another width or a finite value
        beyond fp16, `UnknownVersionError`, and `StoreWriteError` or `StoreUnavailableError`, after which some of the rows may
        be new and the others old.
        """

    @abstractmethod
    def delete(self, version: str, ids: NDArray[np.int64]) -> None:
        """Delete the rows of `ids` [n]; unknown ids are ignored. Raises `UnknownVersionError`."""

    @abstractmethod
    def drop(self, version: str) -> None:
        """Drop a version with all its rows; an unknown version is ignored."""

    @abstractmethod
    def scan(self, version: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Yield all rows in chunks of ids [c] and vectors [c, D], each id once, in no order. Raises `UnknownVersionError`.

        A row that is written or deleted meanwhile is as it was before or after.
        """

    @abstractmethod
    def close(self) -> None:
        """Close files and connections; a second call does nothing."""


def is_version(name: str) -> bool:
    """Return whether `name` is a valid name of a version."""
    return _VERSION.fullmatch(name) is not None


def checked_table(where: str, version: str, width: int) -> None:
    """Raise `StoreInputError` unless the name of the version and the width are valid."""
    if not is_version(version):
        raise StoreInputError(where, f"a version's name of the form {_VERSION.pattern}", repr(version[:200]))
    if not 1 <= width <= _WIDTH_MAX:
        raise StoreInputError(where, f"a width of 1 to {_WIDTH_MAX}", str(width))


def as_ids(where: str, ids: ArrayLike) -> NDArray[np.int64]:
    """Return `ids` as int64 [n]. Raises `StoreInputError`."""
    array = np.asarray(ids)
    if array.dtype is _INT64 and array.ndim == 1:
        return array
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise StoreInputError(where, "ids int64 [n]", f"{array.dtype} {list(array.shape)}")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise StoreInputError(where, "ids within int64", str(array.max()))
    return array.astype(np.int64)


def as_rows(where: str, ids: ArrayLike, vectors: ArrayLike, width: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Return the ids [n] without repeats, and the last vector of each as fp16 [n, width]. Raises `StoreInputError`."""
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
