"""Makes a wire page of a server's own items and scores, column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import urandom
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import ArrayLike, NDArray

from pocketrank.device.codec import to_block
from pocketrank.device.contract import Candidates, Columns, ContractError, Page, PageRequest, as_code
from pocketrank.pages.errors import PageError

__all__ = ["make_page"]

TTL_MS = 600_000
"""Time in milliseconds until a page is stale: ten minutes."""
_F2_MAX = 65504.0
_ROWS = "Give every column the same rows, in the order of `items`."


def make_page(
    request: PageRequest,
    items: Sequence[int] | Sequence[str] | NDArray[Any],
    scores: Mapping[str, ArrayLike],
    *,
    floats: Mapping[str, ArrayLike] | None = None,
    categories: Mapping[str, ArrayLike] | None = None,
    numbering: str | None = None,
    vectors: ArrayLike | None = None,
    user_vector: ArrayLike | None = None,
    split_version: str | None = None,
    ttl_ms: int = TTL_MS,
    price: float = 1.0,
    degraded: Sequence[str] = (),
    page_id: str | None = None,
) -> Page:
    """Return the page that answers `request` with the n `items`, the best first. All columns have the rows of `items`.

    - `items` [n]: whole numbers of 64 bits, or texts, which go by their codes (`pocketrank.pages.Ids`). The page also has the
      texts where the request asks for them (`own_ids`), and in JSON unless it declines them. There may be more than
      `request.size`, and also items of `request.exclude`: these are left out, and the first `size` others are sent.
    - `scores` [n] of each task: probabilities, NaN where the ranker had no time. They are the columns `pxtr_<task>`.
    - `floats` [n] by name: static attributes in raw units, NaN where unknown.
    - `categories` [n] by name: codes from 1 to 2^31 - 1, and 0 where unknown. `numbering` is the name of the codes, which a
      device reads only if its model has the same. A run has its codes and their name in `published/categories.json`.
    - `vectors` [n, D] and `user_vector` [D] of the split form, up to 65,504 in size, with the `split_version` of the lower half
      that computed them. They are sent to a device that asks for this version; for any other the page says why it has none. To
      save their computation, compare `request.split_version` first.
    - `ttl_ms`: time until the page is stale. `price`: that of one more page, 1.0 for normal load; devices ask less often when
      it is higher. `degraded`: what the page lacks, as from `receive_with`. `page_id` is random by default.

    Raises `PageError` for anything else, which is a bug of the server.
    """
    ids: list[Any] = items.tolist() if isinstance(items, np.ndarray) else list(items)
    codes = _codes(ids)
    own_ids = any(isinstance(each, str) for each in ids) if request.own_ids is UNSET else request.own_ids
    rows = len(codes)
    left = np.flatnonzero(~np.isin(codes, np.array(request.exclude, np.int64)))[: request.size]
    pxtr = {f"pxtr_{_task(task)}": _probabilities(f"scores.{task}", values, rows) for task, values in scores.items()}
    named = {name: _floats(name, values, rows) for name, values in (floats or {}).items()}
    codes_of = {name: _categories(f"categories.{name}", values, rows) for name, values in (categories or {}).items()}
    item_vectors, of_user = _vectors(vectors, user_vector, split_version, rows)
    if not 0 < price < np.inf:
        raise PageError("price", "a positive number, 1.0 for normal load", str(price))
    if ttl_ms < 1:
        raise PageError("ttl_ms", "at least 1 ms", str(ttl_ms))
    sends_vectors = item_vectors is not None and request.split_version == split_version
    return Page(
        page_id=urandom(16).hex() if page_id is None else page_id,
        request_id=request.request_id,
        # The device decides when a page is stale, so the page carries the time of the device's clock.
        created_ms=request.now_ms,
        ttl_ms=ttl_ms,
        candidates=Candidates(
            item_id=to_block(codes[left], "i8"),
            floats=_columns(pxtr | named, left, np.float32),
            categories=_columns(codes_of, left, np.int32),
            numbering=UNSET if numbering is None else numbering,
            vector=to_block(item_vectors[left], "f2") if sends_vectors and item_vectors is not None else None,
            item_key=tuple(str(ids[at]) for at in left) if own_ids else UNSET,
        ),
        compute_price=float(price),
        user_vector=to_block(of_user, "f2") if sends_vectors and of_user is not None else None,
        split_version=split_version if sends_vectors else None,
        split_reason=None if sends_vectors else _reason(request.split_version, split_version),
        degraded=tuple(degraded),
    )


def _codes(plain: list[Any]) -> NDArray[np.int64]:
    codes = np.empty(len(plain), np.int64)
    for i, item in enumerate(plain):
        whole = type(item) is int and -(1 << 63) <= item < 1 << 63
        if not (whole or isinstance(item, str)):
            hint = "Give larger numbers as texts." if type(item) is int else ""
            raise PageError(f"items[{i}]", "a text, or a whole number of 64 bits with sign", repr(item)[:60], hint)
        try:
            codes[i] = as_code(item, f"items[{i}]")
        except ContractError as error:
            raise PageError(f"items[{i}]", error.expected, error.got) from None
    unique, first, counts = np.unique(codes, return_index=True, return_counts=True)
    if len(unique) < len(codes):
        twice = int(first[counts > 1].min())
        again = int(np.flatnonzero(codes == codes[twice])[1])
        hint = "Merge the channels that return it, and keep the better row."
        raise PageError(f"items[{again}]", "each item once", f"{plain[twice]!r} as at items[{twice}]", hint)
    return codes


def _task(task: str) -> str:
    if task.startswith("pxtr_"):
        raise PageError(f"scores.{task}", "the name of a task", f"`{task}`", f"Call it `{task.removeprefix('pxtr_')}`.")
    return task


def _column(where: str, values: ArrayLike, rows: int) -> NDArray[Any]:
    try:
        column = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise PageError(where, f"numbers [{rows}]", str(error)) from None
    if column.dtype.kind not in "biuf":
        raise PageError(where, f"numbers [{rows}]", f"{column.dtype} {list(column.shape)}")
    if column.shape != (rows,):
        raise PageError(where, f"[{rows}]", str(list(column.shape)), _ROWS)
    return column


def _probabilities(where: str, values: ArrayLike, rows: int) -> NDArray[Any]:
    column = _column(where, values, rows)
    with np.errstate(invalid="ignore"):
        _check(where, column, (column < 0) | (column > 1), "a probability from 0 to 1, or NaN", "Apply a sigmoid to logits.")
    return column


def _floats(name: str, values: ArrayLike, rows: int) -> NDArray[Any]:
    where = f"floats.{name}"
    if name.startswith("pxtr_"):
        raise PageError(where, "a static attribute", f"`{name}`", "Give the scores of a task in `scores`.")
    column = _column(where, values, rows)
    too_large = np.abs(column.astype(np.float64)) > np.finfo(np.float32).max
    _check(where, column, too_large, "a number that fits a float32, or NaN where unknown")
    return column


def _categories(where: str, values: ArrayLike, rows: int) -> NDArray[Any]:
    column = _column(where, values, rows)
    if column.dtype.kind not in "biu":
        raise PageError(where, "whole numbers", str(column.dtype), "Convert the codes to integers, with 0 where unknown.")
    _check(where, column, (column < 0) | (column >= 1 << 31), "a code from 0 (unknown) to 2147483647", "Number the categories.")
    return column


def _vectors(
    vectors: ArrayLike | None, user_vector: ArrayLike | None, split_version: str | None, rows: int
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    given = {"vectors": vectors, "user_vector": user_vector, "split_version": split_version}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        return None, None
    if missing and missing != ["vectors", "user_vector"]:  # a version alone: vectors are unavailable now
        hint = "The split form reads both vectors, and only those of its own version."
        raise PageError(missing[0], "`vectors`, `user_vector` and `split_version` together", "nothing", hint)
    if missing:
        return None, None
    items, user = np.asarray(vectors), np.asarray(user_vector)
    if items.dtype.kind != "f" or items.ndim != 2 or len(items) != rows:
        raise PageError("vectors", f"floats [{rows}, D]", f"{items.dtype} {list(items.shape)}", _ROWS)
    if user.dtype.kind != "f" or user.shape != items.shape[1:]:
        raise PageError("user_vector", f"floats [{items.shape[1]}]", f"{user.dtype} {list(user.shape)}")
    for where, values in (("vectors", items), ("user_vector", user)):
        _check(where, values, ~(np.abs(values) <= _F2_MAX), f"numbers up to {_F2_MAX:g} in size, and no NaN")
    return items, user


def _check(where: str, values: NDArray[Any], wrong: NDArray[np.bool_], expected: str, hint: str = "") -> None:
    """Raise `PageError` for the first of `values` that is `wrong`."""
    if wrong.any():
        at = np.argwhere(wrong)[0]
        raise PageError(f"{where}[{', '.join(map(str, at))}]", expected, str(values[tuple(at)]), hint)


def _columns(columns: Mapping[str, NDArray[Any]], left: NDArray[np.intp], dtype: type[np.float32 | np.int32]) -> Columns:
    values = np.empty((len(left), len(columns)), dtype)
    for i, column in enumerate(columns.values()):
        values[:, i] = column[left]
    return Columns(names=tuple(columns), values=to_block(values, "f4" if dtype is np.float32 else "i4"))


def _reason(asked: str | None, served: str | None) -> str:
    if asked is None:
        return "not asked for"
    if asked == served:
        return "vectors are temporarily unavailable"
    return f"unknown split version {asked[:64]}"  # the sender's text is cut to the length of a digest
