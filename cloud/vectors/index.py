"""The interface of vector indexes: ids with vectors and attributes, found by inner product.

An id is an int64 label from 0 on that the caller chooses; the server uses positions in its tables. Backends: `exact`, `ivf`,
`qdrant`; `opening` picks one by configuration.

Errors::

    RetrievalError                 the index cannot do what was asked; says what was expected, what it got, and where
    ├── IndexUnavailableError      it does not answer, or not in time, or it is closed
    ├── IndexConfigError           its configuration is invalid, or does not match the collection it found
    └── RowsError                  ids, vectors and attributes do not fit together, or hold values that no index accepts
        └── WidthError             vectors or a query of another width than the index holds
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import isfinite
from typing import ClassVar, NamedTuple, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import MismatchError

__all__ = [
    "AGE_UNKNOWN", "ANY", "NONE", "Attributes", "Found", "IndexConfigError", "IndexUnavailableError", "RetrievalError",
    "RowsError", "VectorIndex", "AttributeFilter", "WidthError", "checked_query", "checked_rows", "raise_closed",
]  # fmt: skip

AGE_UNKNOWN = int(np.iinfo(np.int64).min)
"""`created_ms` of an item of unknown age."""
_LARGEST = float(np.finfo(np.float16).max)
_COMPARED_MAX = 16
"""Up to so many wanted values are compared one by one, which is faster than a search in them (200,000 rows: 30 µs each)."""


class RetrievalError(MismatchError):
    """The index cannot do what was asked. `where` names the index or the argument, `expected` and `got` say what."""


class IndexUnavailableError(RetrievalError):
    """The index does not answer, or not in time, or it is closed."""


class IndexConfigError(RetrievalError):
    """The configuration is invalid, or does not match the collection that was found."""


class RowsError(RetrievalError):
    """Ids, vectors and attributes do not fit together, or hold values that no index accepts."""


class WidthError(RowsError):
    """Vectors or a query of another width than the index holds."""


class Attributes(NamedTuple):
    """Attributes of items that filters use."""

    author: NDArray[np.int64]  # [n] 0 unknown
    category: NDArray[np.int32]  # [n] 0 unknown
    created_ms: NDArray[np.int64]  # [n] since 1970; `AGE_UNKNOWN`

    @classmethod
    def unknown(cls, n: int) -> Attributes:
        """Return the attributes of `n` items of which nothing is known."""
        return cls(np.zeros(n, np.int64), np.zeros(n, np.int32), np.full(n, AGE_UNKNOWN, np.int64))

    def take(self, at: NDArray[np.int64] | slice) -> Attributes:
        """Return the attributes at positions `at`."""
        return Attributes(self.author[at], self.category[at], self.created_ms[at])


class AttributeFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conditions that an item must all meet to be found. Without conditions, every item may be found.

    In-process indexes keep the mask of each `AttributeFilter` they were asked for. So a filter by age is cheapest when its
    bound moves in steps (of a minute, say) and not with every request.
    """

    categories: tuple[int, ...] | None = None
    """Only items of these categories; 0 stands for unknown."""
    categories_not: tuple[int, ...] = ()
    """No items of these categories."""
    authors: tuple[int, ...] | None = None
    """Only items of these authors; 0 stands for unknown."""
    authors_not: tuple[int, ...] = ()
    """No items of these authors."""
    created_from_ms: int | None = None
    """Only items that are not older. Items of unknown age do not pass."""

    def passes(self, attributes: Attributes) -> NDArray[np.bool_]:
        """Return which of the items [n] meet all conditions."""
        passes = np.ones(len(attributes.author), np.bool_)
        if self.categories is not None:
            passes &= _among(attributes.category, self.categories)
        if self.authors is not None:
            passes &= _among(attributes.author, self.authors)
        if self.categories_not:
            passes &= ~_among(attributes.category, self.categories_not)
        if self.authors_not:
            passes &= ~_among(attributes.author, self.authors_not)
        if self.created_from_ms is not None:
            passes &= attributes.created_ms >= max(self.created_from_ms, AGE_UNKNOWN + 1)
        return passes


ANY = AttributeFilter()
"""The filter that every item passes."""
NONE: NDArray[np.int64] = np.zeros(0, np.int64)
"""No ids."""
NONE.flags.writeable = False


class Found(NamedTuple):
    """Result of a search, best first."""

    ids: NDArray[np.int64]  # [m], m <= k, no id twice
    scores: NDArray[np.float32]  # [m] inner products

    @classmethod
    def nothing(cls) -> Found:
        """Return a result without items."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.float32))


class VectorIndex(ABC):
    """Index that finds the items whose vectors have the largest inner product with a query. Safe to call from several threads.

    The first rows set the width. A search sees every row whole: as it was before an `upsert`, or as it is after it.
    """

    @abstractmethod
    def upsert(self, ids: NDArray[np.int64], vectors: NDArray[np.floating], attributes: Attributes) -> None:
        """Add items, or replace those with the same ids; the next search sees them.

        `vectors` [n, D] must be finite and within the range of fp16. Of an id that occurs twice the last row is used. Raises
        `RowsError`, `WidthError`, `IndexUnavailableError`.
        """

    @abstractmethod
    def delete(self, ids: NDArray[np.int64]) -> None:
        """Delete items; the next search does not find them. Unknown ids are ignored. Raises `IndexUnavailableError`."""

    @abstractmethod
    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        where: AttributeFilter = ANY,
        exclude: NDArray[np.int64] = NONE,
        deadline_s: float | None = None,
    ) -> Found:
        """Return the best `k` items for `query` [D] that pass `where` and are not in `exclude` [x].

        Fewer are returned only when no more are left. Ids in `exclude` may be unknown or repeated. `deadline_s` is how long to
        wait for an index in another process; an index in this process ignores it. Raises `WidthError`, `RowsError` for a query
        that is not finite, and `IndexUnavailableError`.
        """

    remote: ClassVar[bool] = False
    """Whether it is in another process, so that it may be unavailable while this one is well."""

    def check(self) -> None:  # noqa: B027
        """Raise `IndexUnavailableError` when searches would; an index in this process always answers."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def close(self) -> None:
        """Close the index. A second call does nothing; any other call then raises `IndexUnavailableError`."""


def checked_rows(
    ids: NDArray[np.int64], vectors: NDArray[np.floating], attributes: Attributes, width: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float32], Attributes]:
    """Return the rows of an `upsert` with each id once and fp32 vectors. Raises `RowsError`, `WidthError`."""
    ids, vectors = np.asarray(ids, np.int64), np.asarray(vectors)
    attributes = Attributes(
        np.asarray(attributes.author, np.int64),
        np.asarray(attributes.category, np.int32),
        np.asarray(attributes.created_ms, np.int64),
    )
    if vectors.ndim != 2 or len(vectors) != len(ids) or not vectors.shape[1]:
        raise RowsError("vectors", f"an array [{len(ids)}, D]", f"{list(vectors.shape)}")
    if width is not None and vectors.shape[1] != width:
        raise WidthError("vectors", f"a width of {width}", str(vectors.shape[1]))
    for name, column in attributes._asdict().items():
        if column.shape != ids.shape:
            raise RowsError(f"attributes.{name}", f"an array [{len(ids)}]", f"{list(column.shape)}")
    if len(ids) and ids.min() < 0:
        raise RowsError("ids", "ids from 0 on", str(ids.min()))
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not (np.abs(vectors) <= _LARGEST).all():  # NaN fails too
        row = int(np.flatnonzero(~(np.abs(vectors) <= _LARGEST).all(1))[0])
        raise RowsError(f"vectors[{row}]", f"finite numbers up to {_LARGEST:.0f}", "others")
    unique, first = np.unique(ids[::-1], return_index=True)
    if len(unique) < len(ids):
        last = np.sort(len(ids) - 1 - first)
        return ids[last], vectors[last], attributes.take(last)
    return ids, vectors, attributes


def checked_query(query: NDArray[np.float32], width: int | None) -> NDArray[np.float32]:
    """Return `query` as a contiguous fp32 array [width]. Raises `WidthError`, and `RowsError` when it is not finite."""
    query = np.ascontiguousarray(query, np.float32)
    if query.ndim != 1 or (width is not None and len(query) != width):
        raise WidthError("query", "an array [D]" if width is None else f"a width of {width}", f"{list(query.shape)}")
    if not isfinite(np.add.reduce(query)):  # a sum with NaN or inf is not finite, and one call is enough
        raise RowsError("query", "finite numbers", "others")
    return query


def raise_closed(where: str) -> NoReturn:
    """Raise the error of a call to a closed index."""
    raise IndexUnavailableError(where, "an open index", "a closed one")


def _among(values: NDArray[np.integer], wanted: tuple[int, ...]) -> NDArray[np.bool_]:
    if len(wanted) <= _COMPARED_MAX:
        found = np.zeros(len(values), np.bool_)
        for value in wanted:
            found |= values == value
        return found
    ordered = np.sort(np.asarray(wanted, np.int64))
    return np.asarray(ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values)
