"""Columnar impression log, on which every model is trained, whatever its source.

A log is six Arrow tables: `impressions` (one row per shown item, with its labels and, if a device reported them, the signals
of the device), `items`, `users`, `history` (events from before the log), `pages` (the candidates of each page, if known) and
`ids` (what the codes of text ids stand for). Columns that a source does not have are null. The columns of an impression have
the names of the fields of `pocketrank.device.contract.FeedbackEvent`, so that a feature is computed from a row of the log
exactly as a device computes it from an event.

Errors::

    DataError                  a log that cannot be trained on; names file, row and column
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "CATEGORIES",
    "HISTORY",
    "IDS",
    "IMPRESSIONS",
    "ITEMS",
    "LABELS",
    "PAGES",
    "USERS",
    "DataError",
    "ImpressionLog",
    "LogDigest",
    "as_table",
    "ids_of",
    "impressions_schema",
    "labels_of",
    "scores_of",
]


class DataError(ValueError):
    """A log cannot be trained on. The message names file, row (from 1, without the header) and column."""

    def __init__(self, file: str, message: str, *, row: int | None = None, column: str | None = None) -> None:
        where = "".join([file, f", row {row}" if row is not None else "", f", column `{column}`" if column else ""])
        super().__init__(f"{where}: {message}")
        self.file, self.message, self.row, self.column = file, message, row, column


def _required(name: str, dtype: pa.DataType) -> pa.Field:
    return pa.field(name, dtype, nullable=False)


LABELS = (
    "click", "effective_view", "long_view", "like", "follow", "comment", "share", "profile_enter", "dislike", "has_next",
)  # fmt: skip
"""Label columns that every log has, though they may be empty. A log may have more under names of its own. A null label is
unknown and takes no part in a loss or a metric."""

IMPRESSIONS = pa.schema(
    [
        _required("user_id", pa.int64()),
        _required("item_id", pa.int64()),
        _required("impression_ms", pa.int64()),
        _required("watch_ms", pa.int64()),
        pa.field("session_id", pa.int64()),
        pa.field("page_id", pa.int64()),
        pa.field("position", pa.int32()),  # in the session, from 0
        pa.field("scene", pa.int32()),
        pa.field("ended", pa.int8()),  # pocketrank.device.contract.Ended
        *[pa.field(label, pa.bool_()) for label in LABELS],
        pa.field("volume", pa.float32()),
        pa.field("volume_change", pa.float32()),
        pa.field("muted", pa.bool_()),
        pa.field("orientation", pa.int8()),
        pa.field("playback_rate", pa.float32()),
        pa.field("pauses", pa.int32()),
        pa.field("seeks", pa.int32()),
        pa.field("scroll_speed", pa.float32()),
        pa.field("network", pa.int8()),
        pa.field("buffering_ms", pa.int64()),
        pa.field("battery_saver", pa.bool_()),
        pa.field("backgrounded", pa.bool_()),
    ]
)
"""One shown item. Sorted by (impression_ms, user_id, item_id). The labels that only this log has follow, as booleans, and then
its own scores `pxtr_<task>`, as float32 from 0 to 1, which were made before the item was shown."""

ITEMS = pa.schema(
    [
        _required("item_id", pa.int64()),
        _required("duration_ms", pa.int64()),
        pa.field("author_id", pa.int64()),
        pa.field("category", pa.int32()),  # codes from 1; 0 and null = unknown
        pa.field("music_id", pa.int64()),
        pa.field("upload_ms", pa.int64()),
        pa.field("vector", pa.list_(pa.float32())),  # content vector, one width for all items
        pa.field("categories", pa.list_(pa.int32())),  # one code per `item_categories` of the log, 0 = unknown
        pa.field("floats", pa.list_(pa.float32())),  # one value per `item_floats` of the log, raw; null in a float is NaN
    ]
)
"""The catalogue, one row per item, unique item_id."""

USERS = pa.schema(
    [
        _required("user_id", pa.int64()),
        pa.field("categories", pa.list_(pa.int32())),  # one code per `user_categories` of the log, 0 = unknown
        pa.field("floats", pa.list_(pa.float32())),  # numeric attributes, already on a usable scale
    ]
)
"""One row per user, unique user_id; the lists have one width for all users."""

HISTORY = pa.schema(
    [
        _required("user_id", pa.int64()),
        _required("item_id", pa.list_(pa.int64())),
        _required("long_view", pa.list_(pa.bool_())),
        _required("like", pa.list_(pa.bool_())),
    ]
)
"""Events of a user from before the log, oldest first, without times."""

PAGES = pa.schema(
    [
        _required("page_id", pa.int64()),
        _required("item_id", pa.list_(pa.int64())),  # all candidates in cloud order, shown or not
    ]
)
"""Candidates of each page. Without them a reranker trains on the shown items alone."""


IDS = pa.schema([_required("kind", pa.string()), _required("code", pa.int64()), _required("text", pa.string())])
"""The ids that are no whole numbers of 64 bits, and the codes that stand for them in the other tables. A kind is the name of a
column, such as `user_id`. Sorted by kind and text."""

CATEGORIES = "categories"
"""Stands for the kinds of all categories of items and users."""
_BLOCK = 1 << 16
"""Rows that a digest takes at a time."""


@dataclass(frozen=True)
class ImpressionLog:
    """Validated log in memory. `pocketrank.cloud.data.log.StoredLog` is one in a folder, with the same attributes."""

    name: str
    simulated: bool
    """Whether it is of a simulated world and not of real users."""
    time_zone: str
    """IANA name of the zone whose days and hours are those of the log."""
    tasks: dict[str, float]
    """Labels that models predict, in the order of their outputs, each with its weight in the order of a page."""
    impressions: pa.Table
    items: pa.Table
    users: pa.Table
    history: pa.Table = field(default_factory=HISTORY.empty_table)
    pages: pa.Table = field(default_factory=PAGES.empty_table)
    ids: pa.Table = field(default_factory=IDS.empty_table)
    actions: tuple[str, ...] = ()
    """Labels of the log's own that are actions of users, which devices report under these names."""
    item_categories: tuple[str, ...] = ()
    """Names of further categorical attributes of items."""
    item_floats: tuple[str, ...] = ()
    """Names of further numbers of items."""
    user_categories: tuple[str, ...] = ()
    """Names of the categorical attributes of users; a log without them has no category of several values."""
    numbering: str = ""
    """Name of the codes of the categories of items (`pocketrank.cloud.data.category_codes`)."""

    TABLES = ("impressions", "items", "users", "history", "pages", "ids")

    @property
    def rows(self) -> int:
        """Number of impressions."""
        return len(self.impressions)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the impressions."""
        return self.impressions.schema

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all label columns: `LABELS`, then those that only this log has."""
        return labels_of(self.schema)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the columns with scores of the log's own, `pxtr_<task>`."""
        return scores_of(self.schema)

    def parts(
        self, since_ms: int | None = None, until_ms: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Return the impressions in their order, in one table. `columns` are those that are needed, by default all."""
        yield self.impressions if columns is None else self.impressions.select(list(columns))

    def ids_of(self, kinds: Sequence[str]) -> pa.Table:
        """Return the `ids` of these kinds; `CATEGORIES` stands for those of all categories."""
        return ids_of(self.ids, kinds)

    def digest(self) -> str:
        """Return the SHA-256 of the contents of all tables, in hex. Chunking, and the bytes under a null, do not affect it."""
        digest = LogDigest()
        digest.update(self.impressions)
        return digest.finish({name: getattr(self, name) for name in self.TABLES[1:]})


def ids_of(ids: pa.Table, kinds: Sequence[str]) -> pa.Table:
    """Return the rows of `IDS` of these kinds; `CATEGORIES` stands for those of all categories."""
    wanted = pc.is_in(ids["kind"], pa.array(kinds, pa.string()))
    if CATEGORIES in kinds:  # further ones have kinds such as `items.brand`
        wanted = pc.or_(wanted, pc.or_(pc.equal(ids["kind"], "category"), pc.match_substring(ids["kind"], ".")))
    return ids.filter(wanted)


def impressions_schema(labels: Sequence[str], scores: Sequence[str] = ()) -> pa.Schema:
    """Return the schema of impressions with these labels, of which those in `LABELS` are there anyway, and scores."""
    own = [pa.field(name, pa.bool_()) for name in labels if name not in LABELS]
    return pa.schema([*IMPRESSIONS, *own, *(pa.field(name, pa.float32()) for name in scores)])


def as_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table as one of `schema`, with nulls in the columns that it does not have."""
    arrays = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def labels_of(schema: pa.Schema) -> tuple[str, ...]:
    """Return the names of all labels in a schema of impressions: `LABELS`, then the log's own."""
    return (*LABELS, *(one.name for one in _own(schema) if pa.types.is_boolean(one.type)))


def scores_of(schema: pa.Schema) -> tuple[str, ...]:
    """Return the names of the scores in a schema of impressions."""
    return tuple(one.name for one in _own(schema) if not pa.types.is_boolean(one.type))


def _own(schema: pa.Schema) -> list[pa.Field]:
    return [one for one in schema if one.name not in IMPRESSIONS.names]


class LogDigest:
    """SHA-256 of a log whose impressions come table by table."""

    def __init__(self, schema: pa.Schema | None = None) -> None:
        """`schema` is that of the impressions, if their tables lack the columns that are null everywhere."""
        self._h, self._schema = hashlib.sha256(), schema
        self._rest: pa.Table | None = None

    def update(self, impressions: pa.Table) -> None:
        """Add the next impressions."""
        rows = impressions if self._rest is None else pa.concat_tables([self._rest, impressions])
        whole = len(rows) - len(rows) % _BLOCK
        for start in range(0, whole, _BLOCK):
            self._table("impressions", rows.slice(start, _BLOCK), self._schema)
        self._rest = rows.slice(whole)

    def finish(self, others: Mapping[str, pa.Table]) -> str:
        """Add the other tables of a log, and return the digest in hex."""
        if self._rest is not None:
            self._table("impressions", self._rest, self._schema)
        for name in ImpressionLog.TABLES[1:]:
            self._table(name, others[name])
        return self._h.hexdigest()

    def _table(self, name: str, table: pa.Table, schema: pa.Schema | None = None) -> None:
        for column in schema or table.schema:
            self._h.update(f"{name}.{column.name}".encode())
            if column.name in table.column_names:
                self._column(table[column.name])
            else:
                self._h.update(f"{column.type} {len(table)} {len(table)}".encode())

    def _column(self, column: pa.ChunkedArray) -> None:
        h = self._h
        h.update(f"{column.type} {len(column)} {column.null_count}".encode())
        if column.null_count == len(column):
            return
        if column.null_count:
            h.update(np.packbits(pc.is_valid(column).to_numpy()).tobytes())
        if pa.types.is_list(column.type):
            h.update(pc.fill_null(pc.list_value_length(column), 0).to_numpy().tobytes())
            self._column(pc.list_flatten(column))
        elif pa.types.is_string(column.type):
            h.update(pc.binary_length(column).to_numpy().tobytes())
            h.update("".join(column.to_pylist()).encode())
        else:
            known = pc.fill_null(column, pa.scalar(0).cast(column.type)) if column.null_count else column
            h.update(np.ascontiguousarray(known.to_numpy()).data)
