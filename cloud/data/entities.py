"""Items and users of a log as arrays. An index is a position in `item_ids` or `user_ids`; 0 is unknown, or padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.schema import DataError
from pocketrank.cloud.time_zones import DAY_MS, local_ms

__all__ = ["Entities", "column", "entities_of", "index_of", "item_codes"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Entities:
    """I items and U users."""

    item_ids: Int  # [I + 1]
    user_ids: Int  # [U + 1]
    item_author: Int  # [I + 1] codes
    item_author_id: Int  # [I + 1] as the log has them, 0 unknown
    item_category: Int  # [I + 1] codes
    item_duration_s: Float  # [I + 1]
    item_upload_day: Float  # [I + 1] counted as the days of the samples are, NaN unknown
    item_upload_ms: Int  # [I + 1], the smallest int64 unknown
    item_content: Float  # [I + 1, V], V = 0 where the log has no content vectors
    item_categories: Int  # [I + 1, C] codes of further attributes, 0 unknown
    item_floats: Float  # [I + 1, B] further numbers, raw, NaN unknown
    item_category_names: tuple[str, ...]
    numbering: str  # of the codes of items' categories, empty without a name
    item_float_names: tuple[str, ...]
    user_categories: Int  # [U + 1, A]
    user_category_names: tuple[str, ...]
    user_floats: Float  # [U + 1, B]


def entities_of(log: Log, first_day: int) -> Entities:
    """Return the items and users of a log. Raises `DataError` for ids out of order."""
    items, users, time_zone = log.items, log.users, log.time_zone
    user_categories = _lists(users, "categories", np.int64, len(log.user_categories) or None)
    upload = column(items, "upload_ms", np.int64)
    author, unknown = column(items, "author_id", np.int64), np.iinfo(np.int64).min
    known = upload >= 0
    return Entities(
        item_ids=_vocabulary(items, "item_id"),
        user_ids=_vocabulary(users, "user_id"),
        item_author=_codes(author),
        item_author_id=np.append(0, np.maximum(author, 0)),
        item_category=np.append(0, np.maximum(column(items, "category", np.int64), 0)),
        item_duration_s=np.append(0, column(items, "duration_ms", np.int64) / 1000).astype(np.float32),
        item_upload_day=np.append(np.nan, np.where(known, local_ms(upload, time_zone) / DAY_MS - first_day, np.nan)).astype(
            np.float32
        ),
        item_upload_ms=np.append(unknown, np.where(known, upload, unknown)),
        item_content=_lists(items, "vector", np.float32),
        item_categories=_lists(items, "categories", np.int64, len(log.item_categories)),
        item_floats=_lists(items, "floats", np.float32, len(log.item_floats), fill=np.nan),
        item_category_names=log.item_categories,
        numbering=log.numbering,
        item_float_names=log.item_floats,
        user_categories=user_categories,
        user_category_names=log.user_categories or tuple(map(str, range(user_categories.shape[1]))),
        user_floats=_lists(users, "floats", np.float32),
    )


def item_codes(items: Entities) -> dict[str, NDArray[np.integer[Any]]]:
    """Return the codes [I + 1] of items by what they may have in common, and of the items themselves; 0 is unknown."""
    known = {"item": np.arange(len(items.item_ids)), "author": items.item_author, "category": items.item_category}
    return dict(zip(items.item_category_names, items.item_categories.T, strict=True)) | known


def column(table: pa.Table, name: str, dtype: type[Scalar]) -> NDArray[Scalar]:
    """Return a column as numpy, with NaN for nulls in floats and -1 in integers."""
    values = table.column(name)
    if np.issubdtype(dtype, np.floating):
        return np.asarray(values.cast(pa.float32()).to_numpy(), dtype)  # nulls become NaN
    return np.asarray(values.cast(pa.int64()).fill_null(-1).to_numpy(), dtype)


def index_of(ids: Int, values: Int) -> Int:
    """Return the index of each value in `ids`, 0 where it is not among them."""
    at = np.searchsorted(ids, values).clip(0, len(ids) - 1)
    return np.where(ids[at] == values, at, 0)


def _lists(table: pa.Table, name: str, dtype: type[Scalar], width: int | None = None, fill: float = 0.0) -> NDArray[Scalar]:
    """Return a list column as [rows + 1, width]; row 0, and rows without a list, are `fill`. Raises `DataError`."""
    values: Any = table.column(name).combine_chunks()
    flat = values.drop_null().flatten().to_numpy(zero_copy_only=False)
    found = len(flat) // max(1, len(values) - values.null_count)
    if width is not None and found not in (0, width):
        raise DataError("items", f"expected {width} values, one for each name, got {found}", column=name)
    out = np.full((len(values) + 1, found if width is None else width), fill, dtype)
    if found:
        out[1:][np.asarray(values.is_valid())] = flat.reshape(-1, found)
    return out


def _vocabulary(table: pa.Table, name: str) -> Int:
    ids = np.unique(column(table, name, np.int64))
    if len(ids) != len(table) or not np.array_equal(ids, column(table, name, np.int64)):
        raise DataError(name.removesuffix("_id") + "s", "expected unique ids in ascending order", column=name)
    return np.concatenate([[np.iinfo(np.int64).min], ids])


def _codes(values: Int) -> Int:
    unique, codes = np.unique(values, return_inverse=True)
    return np.append(0, np.where(values < 0, 0, codes + (1 if unique[0] >= 0 else 0)))
