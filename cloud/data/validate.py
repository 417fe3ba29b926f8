"""Checks of a log, against the schema and the rules between its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pocketrank.cloud.data.schema import (
    HISTORY,
    IDS,
    ITEMS,
    PAGES,
    USERS,
    DataError,
    ImpressionLog,
    impressions_schema,
    labels_of,
    scores_of,
)
from pocketrank.device.contract import Ended, Network, Orientation

__all__ = ["RANGES", "TIMES_MS", "validate", "validate_impressions", "validate_links", "validate_others"]

TIMES_MS = (631_152_000_000, 4_102_444_799_999)
"""Range of valid times: the years 1990 to 2099. Times in seconds or microseconds since the epoch are outside of it."""

_SCHEMAS = {"items": ITEMS, "users": USERS, "history": HISTORY, "pages": PAGES, "ids": IDS}

RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "impressions": {
        "impression_ms": TIMES_MS,
        "watch_ms": (0, np.inf),
        "position": (0, np.inf),
        "ended": (min(Ended), max(Ended)),
        "volume": (0, 1),
        "orientation": (min(Orientation), max(Orientation)),
        "playback_rate": (0, np.inf),
        "pauses": (0, np.inf),
        "seeks": (0, np.inf),
        "network": (min(Network), max(Network)),
        "buffering_ms": (0, np.inf),
    },
    "items": {"duration_ms": (0, np.inf), "category": (0, np.inf)},
}
"""Smallest and largest valid value by table and column."""


def validate(log: ImpressionLog) -> None:
    """Raise `DataError` at the first violation of a rule in `log`, with the name of the table as `file`.

    The rules are:

    - each table has exactly its schema; a required column, and a list, has no nulls;
    - impressions are sorted by (impression_ms, user_id, item_id), their values are in range, their items are in `items`, and
      if there are `pages`, their page is one of them and has the item;
    - item ids are unique; vectors are finite and of one width (an item may have none);
    - user ids are unique; the lists are finite and of one width (a user may have none). A user of an impression needs no row;
    - history has one row per user and three lists of one length in each. Its items need no row;
    - page ids are unique, and a page's items are in `items`;
    - codes of ids and their texts are unique within a kind.
    """
    validate_impressions(log.impressions)
    others = {name: getattr(log, name) for name in log.TABLES[1:]}
    validate_others(others)
    validate_links(log.impressions, others)
    if unknown := set(log.actions) - set(log.labels):
        raise DataError("impressions", f"expected labels of the actions {', '.join(sorted(unknown))}, got none")


def validate_impressions(table: pa.Table) -> None:
    """Check impressions by themselves, as `validate` does."""
    _check_schema("impressions", table, impressions_schema(labels_of(table.schema), scores_of(table.schema)))
    for column, (low, high) in RANGES["impressions"].items():
        _check_range("impressions", table, column, low, high)
    for column in scores_of(table.schema):
        _check_range("impressions", table, column, 0, 1)
    _check_order(table)


def validate_others(tables: Mapping[str, pa.Table]) -> None:
    """Check the tables beside the impressions by themselves, as `validate` does."""
    for name, schema in _SCHEMAS.items():
        _check_schema(name, tables[name], schema)
    for column, (low, high) in RANGES["items"].items():
        _check_range("items", tables["items"], column, low, high)
    _check_unique("items", tables["items"], "item_id")
    _check_lists("items", tables["items"], "vector")
    _check_lists("items", tables["items"], "categories")
    _check_lists("items", tables["items"], "floats", unknown=True)
    _check_unique("users", tables["users"], "user_id")
    _check_lists("users", tables["users"], "categories")
    _check_lists("users", tables["users"], "floats")
    _check_unique("history", tables["history"], "user_id")
    _check_history(tables["history"])
    _check_unique("pages", tables["pages"], "page_id")
    _check_ids(tables["ids"])


def validate_links(impressions: pa.Table, tables: Mapping[str, pa.Table]) -> None:
    """Check that impressions refer to items and pages of the other tables, as `validate` does."""
    _check_known("impressions", impressions["item_id"], tables["items"]["item_id"], "item_id")
    if len(tables["pages"]):
        _check_pages(impressions, tables["pages"], tables["items"])


def _check_schema(name: str, table: pa.Table, schema: pa.Schema) -> None:
    for field in schema:
        if field.name not in table.column_names:
            raise DataError(name, f"expected {field.type}, got no such column", column=field.name)
    for got in table.schema:
        if got.name not in schema.names:
            raise DataError(name, f"expected no such column, got {got.type}", column=got.name)
        if not got.equals(schema.field(got.name)):
            raise DataError(name, f"expected {_describe(schema.field(got.name))}, got {_describe(got)}", column=got.name)
    if table.column_names != schema.names:
        raise DataError(name, f"expected columns in the order {', '.join(schema.names)}, got {', '.join(table.column_names)}")
    for field in schema:
        column = table[field.name]
        if not field.nullable and column.null_count:
            _fail(name, pc.is_null(column), "expected a value, got null", field.name)
        if pa.types.is_list(field.type) and pc.list_flatten(column).null_count:
            holes = _parents(column)[_array(pc.is_null(pc.list_flatten(column)))]
            raise DataError(
                name, "expected a list without nulls, got one with a null", row=int(holes[0]) + 1, column=field.name
            )


def _describe(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"


def _check_range(name: str, table: pa.Table, column: str, low: float, high: float) -> None:
    values = table[column]
    within = pc.greater_equal(values, low)
    if high != np.inf:  # which Arrow compares as floats, in which it refuses to put an int64 beyond 2^53
        within = pc.and_(within, pc.less_equal(values, high))
    _fail(name, pc.fill_null(pc.invert(within), False), lambda row: f"expected {low}..{high}, got {values[row]}", column)


def _check_order(table: pa.Table) -> None:
    # Lexicographic order, column by column: `later` are the rows that an earlier column puts after the row before.
    later = np.zeros(max(0, len(table) - 1), bool)
    equal = ~later
    for column in ("impression_ms", "user_id", "item_id"):
        values = table[column].to_numpy()
        later |= equal & (values[:-1] < values[1:])
        equal &= values[:-1] == values[1:]
    _fail(
        "impressions",
        np.concatenate([[False], ~(later | equal)]) if len(table) else [],
        "expected rows sorted by impression_ms, user_id, item_id, got one that belongs before the row above it",
        "impression_ms",
    )


def _check_known(name: str, values: pa.ChunkedArray, known: pa.ChunkedArray, column: str, table: str = "items") -> None:
    unknown = pc.and_(pc.is_valid(values), pc.invert(pc.is_in(values, value_set=known)))
    _fail(name, unknown, lambda row: f"expected an id of `{table}`, got {values[row]}", column)


def _check_unique(name: str, table: pa.Table, column: str) -> None:
    values = table[column].to_numpy()
    order = np.argsort(values, kind="stable")
    again = order[1:][values[order[1:]] == values[order[:-1]]]
    if len(again):
        row = int(again.min())
        raise DataError(name, f"expected unique ids, got {values[row]} again", row=row + 1, column=column)


def _check_lists(name: str, table: pa.Table, column: str, *, unknown: bool = False) -> None:
    lists = table[column]
    widths = pc.list_value_length(lists)
    if widths.null_count == len(widths):
        return
    width = pc.drop_null(widths)[0].as_py()
    other = pc.fill_null(pc.not_equal(widths, width), False)
    _fail(name, other, lambda row: f"expected {width} values as in the rows before, got {widths[row]}", column)
    values = _array(pc.list_flatten(lists))
    bad = (np.isinf(values) if unknown else ~np.isfinite(values)) if values.dtype.kind == "f" else values < 0
    if bad.any():
        place = int(np.flatnonzero(bad)[0])
        raise DataError(
            name,
            f"expected finite values, codes from 0, got {values[place]}",
            row=int(_parents(lists)[place]) + 1,
            column=column,
        )


def _check_history(history: pa.Table) -> None:
    length = pc.list_value_length(history["item_id"])
    for column in ("long_view", "like"):
        other = pc.not_equal(pc.list_value_length(history[column]), length)
        _fail("history", other, "expected as many labels as items, got another number", column)


def _check_ids(ids: pa.Table) -> None:
    for column in ("code", "text"):
        seen = ids.append_column("row", pa.array(np.arange(len(ids)))).group_by(["kind", column]).aggregate([("row", "min")])
        if len(seen) < len(ids):
            row = int(np.setdiff1d(np.arange(len(ids)), seen["row_min"].to_numpy())[0])
            got = f"{ids[column][row]} of kind {ids['kind'][row]} again"
            raise DataError("ids", f"expected unique codes and texts, got {got}", row=row + 1, column=column)


def _check_pages(impressions: pa.Table, offers: pa.Table, items: pa.Table) -> None:
    offered = pc.list_flatten(offers["item_id"])
    place = _array(pc.index_in(offered, value_set=items["item_id"]).cast(pa.int64()).fill_null(-1))
    pages = _parents(offers["item_id"])
    if (place < 0).any():
        first = int(np.flatnonzero(place < 0)[0])
        raise DataError("pages", f"expected ids of `items`, got {offered[first]}", row=int(pages[first]) + 1, column="item_id")
    page_ids, shown = impressions["page_id"], impressions["item_id"]
    _check_known("impressions", page_ids, offers["page_id"], "page_id", "pages")
    # Each pair of page and item as one number, so that all impressions are looked up at once.
    page = _array(pc.index_in(page_ids, value_set=offers["page_id"]).cast(pa.int64()).fill_null(-1))
    item = _array(pc.index_in(shown, value_set=items["item_id"]).cast(pa.int64()))
    missing = (page >= 0) & ~np.isin(page * len(items) + item, pages * len(items) + place)
    _fail("impressions", missing, lambda row: f"expected an item of page {page_ids[row]}, got {shown[row]}", "item_id")


def _parents(lists: pa.ChunkedArray) -> Any:
    """Return the row of each value of the flattened lists."""
    lengths = _array(pc.fill_null(pc.list_value_length(lists), 0))
    return np.repeat(np.arange(len(lengths)), lengths)


def _array(values: Any) -> Any:
    return values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()


def _fail(name: str, bad: Any, message: str | Callable[[int], str], column: str) -> None:
    """Raise for the first row where `bad` holds."""
    rows = np.flatnonzero(_array(bad) if isinstance(bad, pa.Array | pa.ChunkedArray) else bad)
    if len(rows):
        row = int(rows[0])
        raise DataError(name, message if isinstance(message, str) else message(row), row=row + 1, column=column)
