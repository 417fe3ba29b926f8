"""Small folders in the KuaiRand layout, written by the tests that read them."""

import csv
import gzip
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from pocketrank.cloud.data.import_log import load_mapped
from pocketrank.cloud.data.schema import ImpressionLog

EXAMPLES = Path(__file__).parents[3] / "examples"
KUAIRAND = EXAMPLES / "kuairand.toml"

USER_CATEGORIES = [
    "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", "follow_user_num_range",
    "fans_user_num_range", "friend_user_num_range", "register_days_range", *(f"onehot_feat{i}" for i in range(18)),
]  # fmt: skip
USER_FLOATS = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
LOG = [
    "user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment", "is_forward",
    "is_hate", "long_view", "play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time", "is_profile_enter",
    "is_rand", "tab",
]  # fmt: skip
VIDEO = [
    "video_id", "author_id", "video_type", "upload_dt", "upload_type", "visible_status", "video_duration", "server_width",
    "server_height", "music_id", "music_type", "tag",
]  # fmt: skip
USER = ["user_id", *USER_CATEGORIES, *USER_FLOATS]

NOON = 1_651_032_000_000
"""27 April 2022, 12:00 in UTC+8."""
DAY = 24 * 3_600_000

Row = dict[str, object]


def impression(user: int = 1, video: int = 10, time_ms: int = NOON, **fields: object) -> Row:
    return dict.fromkeys(LOG, 0) | {
        "user_id": user, "video_id": video, "date": 20220427, "hourmin": 1200, "time_ms": time_ms, "play_time_ms": 5000,
        "duration_ms": 9000, "tab": 1,
    } | fields  # fmt: skip


def video(video_id: int, **fields: object) -> Row:
    return dict.fromkeys(VIDEO, "") | {
        "video_id": video_id, "author_id": 7, "video_type": "NORMAL", "upload_dt": "2022-04-10", "video_duration": "9000.0",
        "music_id": "55.0", "tag": "3,12",
    } | fields  # fmt: skip


def user(user_id: int, **fields: object) -> Row:
    categories = dict.fromkeys(USER_CATEGORIES, "0") | {"user_active_degree": "full_active"}
    return {"user_id": user_id, **categories, **dict.fromkeys(USER_FLOATS, 0), **fields}


def write(file: Path, header: Sequence[str], rows: Iterable[Row]) -> Path:
    """Write a CSV file, gzipped when its name says so."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = text.getvalue().encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def write_folder(
    folder: Path,
    *,
    log: Iterable[Row] | None = None,
    videos: Iterable[Row] | None = None,
    users: Iterable[Row] | None = None,
    size: str = "pure",
    suffix: str = ".csv",
) -> Path:
    """A whole folder: two users, two videos and three impressions unless told otherwise."""
    log = log or [impression(), impression(2, 11, NOON + 1, is_click=1), impression(1, 11, NOON + DAY, is_like=1, long_view=1)]
    write(folder / f"log_standard_4_22_to_5_08_{size}{suffix}", LOG, log)
    write(folder / f"video_features_basic_{size}{suffix}", VIDEO, videos or [video(10), video(11)])
    write(folder / f"user_features_{size}{suffix}", USER, users or [user(1), user(2)])
    return folder


def load(folder: Path) -> ImpressionLog:
    """The log of a folder by the example's data file."""
    return load_mapped(KUAIRAND, tables=folder)


def write_sequences(
    file: Path, rows: list[tuple[int, list[int], list[int], list[int]]], history_len: int | None = None
) -> Path:
    """`user_sequences.parquet` of (user, watched, long views, likes)."""
    schema = {"user_id": pl.Int64, **dict.fromkeys(("watch_seq", "long_watch_seq", "like_seq"), pl.List(pl.Int64))}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    length = pl.col("watch_seq").list.len() if history_len is None else pl.lit(history_len)
    frame.with_columns(history_len=length.cast(pl.Int64), last_time_ms=pl.lit(0, pl.Int64)).write_parquet(file)
    return file
