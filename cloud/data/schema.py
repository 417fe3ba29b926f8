"""Columnar impression log, on which every model is trained, whatever its source.

A log is five Arrow tables: `impressions` (one row per shown item, with its labels and, if a device reported them, the signals
of the device), `items`, `users`, `history` (events from before the log) and `pages` (the candidates of each page, if known).
Columns that a source does not have are null. The columns of an impression have the names of the fields of
`pocketrank.device.contract.FeedbackEvent`, so that a feature is computed from a row of the log exactly as a device computes it
from an event.

Errors::

    DataError                  a log that cannot be trained on; names file, row and column
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank.cloud.files import replacing

__all__ = ["HISTORY", "IMPRESSIONS", "ITEMS", "LABELS", "PAGES", "SAVED_KEY", "USERS", "DataError", "ImpressionLog", "Saved"]


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
"""One shown item. Sorted by (impression_ms, user_id, item_id). The labels that only this log has follow, as booleans."""

ITEMS = pa.schema(
    [
        _required("item_id", pa.int64()),
        _required("duration_ms", pa.int64()),
        pa.field("author_id", pa.int64()),
        pa.field("category", pa.int32()),  # codes from 1; 0 and null = unknown
        pa.field("music_id", pa.int64()),
        pa.field("upload_ms", pa.int64()),
        pa.field("vector", pa.list_(pa.float32())),  # content vector, one width for all items
    ]
)
"""The catalogue, one row per item, unique item_id."""

USERS = pa.schema(
    [
        _required("user_id", pa.int64()),
        pa.field("categories", pa.list_(pa.int32())),  # one code per categorical attribute, 0 = unknown
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


SAVED_KEY = b"pocketrank"
"""Key of the Parquet metadata of `impressions` under which a saved log has `Saved` as JSON."""


class Saved(msgspec.Struct, frozen=True):
    """Metadata of a saved log."""

    FORMAT: ClassVar[int] = 2

    format: int
    name: str
    simulated: bool
    time_zone: str
    tasks: dict[str, float]


@dataclass(frozen=True)
class ImpressionLog:
    """Validated log."""

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

    TABLES = ("impressions", "items", "users", "history", "pages")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all label columns: `LABELS`, then those that only this log has."""
        own = self.impressions.column_names[len(IMPRESSIONS) :]
        return (*LABELS, *own)

    def digest(self) -> str:
        """Return the SHA-256 of the contents of all tables, in hex. Chunking, and the bytes under a null, do not affect it."""
        h = hashlib.sha256()
        for name in self.TABLES:
            table = getattr(self, name)
            for column in table.schema.names:
                h.update(f"{name}.{column}".encode())
                _feed(h, table[column])
        return h.hexdigest()

    def save(self, folder: Path) -> None:
        """Write one Parquet file per table into `folder`, which is made if missing; `open_log` reads them.

        A log in the folder is replaced. `impressions.parquet` has the name and `simulated` in its metadata. It is removed first
        and written last, so that `open_log` rejects a folder whose writing was interrupted. Raises OSError.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "impressions.parquet").unlink(missing_ok=True)
        for name in reversed(self.TABLES):
            table = getattr(self, name)
            if name == "impressions":
                mark = Saved(Saved.FORMAT, self.name, self.simulated, self.time_zone, self.tasks)
                table = table.replace_schema_metadata({SAVED_KEY: msgspec.json.encode(mark)})
            with replacing(folder / f"{name}.parquet") as part:
                # The other naming of list elements would change the schema, and with it the digest of the log that is opened.
                pq.write_table(table, part, write_page_checksum=True, use_compliant_nested_type=False)


def _feed(h: hashlib._Hash, column: pa.ChunkedArray) -> None:
    h.update(f"{column.type} {len(column)}".encode())
    h.update(np.packbits(pc.is_valid(column).to_numpy()).tobytes())
    if pa.types.is_list(column.type):
        h.update(pc.fill_null(pc.list_value_length(column), 0).to_numpy().tobytes())
        _feed(h, pc.list_flatten(column))
    else:
        h.update(pc.fill_null(column, pa.scalar(0).cast(column.type)).to_numpy().tobytes())
