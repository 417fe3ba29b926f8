"""History of users from before the log, reconstructed from three sequences of ids.

`user_sequences.parquet` holds for each user, oldest first: `watch_seq`, the ids of all impressions, and `long_watch_seq` and
`like_seq`, the ids of the long views and likes. Each is cut to its own last 50. If a user has more impressions than that
(`history_len`), the latter two may therefore begin before `watch_seq`. Matching them with `watch_seq`, from the newest
impression back, gives the labels of the impressions; ids without a match are older.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from pocketrank.cloud.data.schema import HISTORY, DataError

__all__ = ["load_history", "mark_subsequence"]

_SEQUENCES = ("watch_seq", "long_watch_seq", "like_seq")


def mark_subsequence(whole: Sequence[int], part: Sequence[int]) -> tuple[list[bool], int]:
    """Match the longest end of `part` that is a subsequence of `whole`; both are oldest first.

    Returns a mark for each element of `whole`, true where it matches one of `part`, and the number of elements at the beginning
    of `part` without a match, 0 if all of `part` is a subsequence. Each element is matched as late as possible, which leaves
    the fewest without a match.
    """
    marks = [False] * len(whole)
    left = len(part)
    for place in range(len(whole) - 1, -1, -1):
        if left == 0:
            break
        if whole[place] == part[left - 1]:
            marks[place] = True
            left -= 1
    return marks, left


def load_history(file: Path) -> pa.Table:
    """Read `user_sequences.parquet` into a `HISTORY` table, sorted by user.

    Items are those of `watch_seq`. The column `last_time_ms` is not used, because no event has a time of its own.

    Raises `DataError` for a file that is not Parquet; a column that is missing, of another type or with an empty value; a user
    with two rows; and long views or likes without a match in `watch_seq`, of which there are more than earlier impressions.
    """
    name = str(file)
    frame = _read(file)
    twice = frame["user_id"].is_first_distinct().not_().arg_true()
    if len(twice):
        row = int(twice[0])
        raise DataError(name, f"expected each user once, got {frame['user_id'][row]} again", row=row + 1, column="user_id")
    watched = frame["watch_seq"].to_list()
    older = (frame["history_len"].cast(pl.Int64) - frame["watch_seq"].list.len().cast(pl.Int64)).to_list()
    arrays = [pa.array(frame["user_id"].to_list(), pa.int64()), pa.array(watched, pa.list_(pa.int64()))]
    for column in ("long_watch_seq", "like_seq"):
        marks = []
        for row, (whole, part, room) in enumerate(zip(watched, frame[column].to_list(), older, strict=True), start=1):
            marked, left = mark_subsequence(whole, part)
            if left > max(0, room):
                message = (
                    f"expected an ordered subsequence of `watch_seq` and of {room} impressions before it, got {left} left over"
                )
                raise DataError(name, message, row=row, column=column)
            marks.append(marked)
        arrays.append(pa.array(marks, pa.list_(pa.bool_())))
    return pa.Table.from_arrays(arrays, schema=HISTORY).sort_by("user_id")


def _read(file: Path) -> pl.DataFrame:
    name = str(file)
    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(name, f"expected a Parquet file, got one that cannot be read: {error}") from error
    for column in ("user_id", "history_len", *_SEQUENCES):
        expected = pl.List(pl.Int64) if column in _SEQUENCES else pl.Int64()
        if frame.schema.get(column) != expected:
            raise DataError(name, f"expected {expected}, got {frame.schema.get(column, 'no such column')}", column=column)
        holes = frame[column].is_null()
        if column in _SEQUENCES:
            holes |= frame[column].list.eval(pl.element().is_null()).list.any()
        if holes.any():
            raise DataError(name, "expected a value, got null", row=int(holes.arg_true()[0]) + 1, column=column)
    return frame
