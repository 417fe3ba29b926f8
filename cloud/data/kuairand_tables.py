"""Columns of the public KuaiRand files, and the tables of an `ImpressionLog` from them.

The fields are described at https://kuairand.com (Gao et al., "KuaiRand", CIKM 2022). Columns that the public files do not have
are null: `effective_view`, `has_next`, sessions, pages, positions and the signals of a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pocketrank.cloud.data.csv_chunks import Column, Kind
from pocketrank.cloud.data.schema import IMPRESSIONS, ITEMS, USERS
from pocketrank.cloud.data.validate import TIMES_MS

__all__ = [
    "LOG_COLUMNS",
    "TASKS",
    "TIME_ZONE",
    "USER_CATEGORIES",
    "USER_COLUMNS",
    "USER_FLOATS",
    "VIDEO_COLUMNS",
    "VIDEO_UNUSED",
    "impressions_table",
    "items_table",
    "users_table",
]

TIME_ZONE = "Asia/Shanghai"
"""Zone of the days of the data set."""
TASKS = {"click": 0.0, "long_view": 1.0, "like": 1.0, "profile_enter": 0.0}
"""Labels that models predict, with their weights."""
_LABEL_OF = {
    "is_click": "click",
    "is_like": "like",
    "is_follow": "follow",
    "is_comment": "comment",
    "is_forward": "share",
    "is_hate": "dislike",
    "long_view": "long_view",
    "is_profile_enter": "profile_enter",
}
_NUMBER = Column(Kind.INTEGER, low=0)
_DURATION_MAX_MS = 2**53 - 1  # of the values of an item, a median is taken, which is a float
_EXTRA = Column(Kind.INTEGER, optional=True, nullable=True, low=-(2**31), high=2**31 - 1)

LOG_COLUMNS: dict[str, Column] = {
    "time_ms": Column(Kind.INTEGER, low=TIMES_MS[0], high=TIMES_MS[1]),
    "user_id": _NUMBER,
    "video_id": _NUMBER,
    **{name: Column(Kind.LABEL) for name in _LABEL_OF},
    "play_time_ms": _NUMBER,
    "duration_ms": Column(Kind.INTEGER, low=0, high=_DURATION_MAX_MS),
    "tab": Column(Kind.INTEGER, low=0, high=2**31 - 1),
    # These are in no table, but rows are duplicates only if they agree in these too.
    **dict.fromkeys(("date", "hourmin", "profile_stay_time", "comment_stay_time", "is_rand"), _EXTRA),
}
"""Columns of `log_standard_*` and `log_random_*`, the sort keys first."""

VIDEO_COLUMNS: dict[str, Column] = {
    "video_id": _NUMBER,
    "author_id": Column(Kind.WHOLE, nullable=True),
    "upload_dt": Column(Kind.DAY, nullable=True),
    "video_duration": Column(Kind.WHOLE, nullable=True, high=_DURATION_MAX_MS),
    "music_id": Column(Kind.WHOLE, nullable=True),
    "tag": Column(Kind.TEXT, nullable=True, pattern=r"-?[0-9]{1,6}(,-?[0-9]{1,6})*"),
}
"""Columns of `video_features_basic_*` that are used."""

VIDEO_UNUSED = frozenset({"video_type", "upload_type", "visible_status", "server_width", "server_height", "music_type"})
"""Other columns of `video_features_basic_*`, which cause no warning."""

USER_CATEGORIES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18)),
)
"""Columns of a user's `categories`, in their order."""

USER_FLOATS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
"""Columns of a user's `floats`, in their order; the values are log(1 + count)."""

USER_COLUMNS: dict[str, Column] = {
    "user_id": _NUMBER,
    **{name: Column(Kind.TEXT, nullable=True) for name in USER_CATEGORIES},
    **{name: Column(Kind.WHOLE, nullable=True) for name in USER_FLOATS},
}
"""Columns of `user_features_*`."""

_UNKNOWN = ("UNKNOWN", "-124")  # a missing category in the public files


def impressions_table(log: pl.DataFrame) -> pa.Table:
    """Return the `IMPRESSIONS` of rows with `LOG_COLUMNS`, in their order."""
    columns = {
        "user_id": log["user_id"],
        "item_id": log["video_id"],
        "impression_ms": log["time_ms"],
        "watch_ms": log["play_time_ms"],
        "scene": log["tab"],
        **{label: log[name] for name, label in _LABEL_OF.items()},
    }
    return _table(columns, IMPRESSIONS, len(log))


def items_table(videos: pl.DataFrame, log: pl.DataFrame) -> pa.Table:
    """Return `ITEMS`, with one row per video of `videos` or `log`, sorted by id.

    `duration_ms` is the median of the log's positive values for the item, or else `video_duration`, or else 0 for unknown (239
    of the 7,583 videos of Pure). `category` is the first tag + 1, so that a code does not depend on the other rows of the file.
    `upload_ms` is the start of the upload day in `TIME_ZONE`.
    """
    watched = log.group_by("video_id").agg(pl.col("duration_ms").filter(pl.col("duration_ms") > 0).median().alias("seen_ms"))
    tag = pl.col("tag").str.extract(r"^(-?[0-9]+)").cast(pl.Int32)
    items = (
        videos.join(watched, on="video_id", how="full", coalesce=True)
        .sort("video_id")
        .select(
            item_id="video_id",
            duration_ms=pl.coalesce("seen_ms", "video_duration", pl.lit(0)).round().cast(pl.Int64).clip(0),
            author_id="author_id",
            category=pl.when(tag >= 0).then(tag + 1).otherwise(0).fill_null(0),
            music_id="music_id",
            upload_ms=pl.col("upload_dt").cast(pl.Datetime("ms")).dt.replace_time_zone(TIME_ZONE).dt.epoch("ms"),
        )
    )
    return _table({column.name: column for column in items.get_columns()}, ITEMS, len(items))


def users_table(users: pl.DataFrame) -> pa.Table:
    """Return `USERS`, with one row per user, sorted by id.

    The code of a category is its position, from 1, among the sorted values of the column in this file; empty, `UNKNOWN` and
    -124 are 0. A missing or negative count is 0.
    """
    users = users.sort("user_id")
    codes = np.stack([_codes(users[name]) for name in USER_CATEGORIES], axis=1)
    counts = users.select(pl.col(name).fill_null(0).clip(0) for name in USER_FLOATS).to_numpy()
    arrays = [
        pa.array(users["user_id"].to_numpy(), pa.int64()),
        _lists(codes, pa.int32()),
        _lists(np.log1p(counts).astype(np.float32), pa.float32()),
    ]
    return pa.Table.from_arrays(arrays, schema=USERS)


def _codes(values: pl.Series) -> Any:
    # The same value is `1` in one file and `1.0` in another.
    values = values.str.strip_suffix(".0")
    values = values.set(values.is_in(_UNKNOWN), None)
    vocabulary = values.drop_nulls().unique().sort()
    return values.cast(pl.Enum(vocabulary)).to_physical().cast(pl.Int32).fill_null(-1).to_numpy() + 1


def _lists(matrix: Any, dtype: pa.DataType) -> pa.Array:
    rows, width = matrix.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(width))
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.ravel(), dtype))


def _table(columns: Mapping[str, pl.Series], schema: pa.Schema, rows: int) -> pa.Table:
    arrays = [
        columns[field.name].to_arrow().cast(field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
