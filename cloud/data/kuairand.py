"""Loader of the public KuaiRand data set (Gao et al., CIKM 2022, https://kuairand.com) as an `ImpressionLog`.

All three sizes have one layout. Each file is plain or gzipped, and the large files of 27K are in parts::

    log_standard_4_08_to_4_21_<size>[_part<n>].csv[.gz]    what the recommender showed
    log_standard_4_22_to_5_08_<size>[_part<n>].csv[.gz]
    log_random_4_22_to_5_08_<size>.csv[.gz]                shown at random; not loaded
    user_features_<size>.csv[.gz]
    video_features_basic_<size>[_part<n>].csv[.gz]
    user_sequences.parquet                                 optional; not public: history from before the log

`<size>` is one of `pure`, `1k` and `27k`. The files may also be in the folder's `data/`, as in the public archives.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl

from pocketrank.cloud.data.csv_chunks import Column, read_chunks
from pocketrank.cloud.data.days import empty_days
from pocketrank.cloud.data.history import load_history
from pocketrank.cloud.data.kuairand_tables import (
    LOG_COLUMNS,
    TASKS,
    TIME_ZONE,
    USER_COLUMNS,
    VIDEO_COLUMNS,
    VIDEO_UNUSED,
    impressions_table,
    items_table,
    users_table,
)
from pocketrank.cloud.data.schema import HISTORY, DataError, ImpressionLog
from pocketrank.cloud.data.validate import validate
from pocketrank.cloud.time_zones import zone_of

__all__ = ["KuaiRandFiles", "Progress", "find_kuairand", "load_kuairand"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Receives the name of the file that is being read, and the share, 0 to 1, of all bytes on disk that were read."""

_KINDS = ("log_standard", "user_features", "video_features_basic")
_FILE = re.compile(rf"({'|'.join(_KINDS)})_(?:.*_)?(pure|1k|27k)(?:_part[0-9]+)?\.csv(?:\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class KuaiRandFiles:
    """Files of a KuaiRand folder, each group sorted by name."""

    size: str
    """`pure`, `1k` or `27k`."""
    logs: tuple[Path, ...]
    users: tuple[Path, ...]
    videos: tuple[Path, ...]
    history: Path | None

    @property
    def tables(self) -> tuple[Path, ...]:
        """All CSV files."""
        return self.logs + self.users + self.videos


def find_kuairand(folder: Path) -> KuaiRandFiles:
    """Find the files of the public layout in `folder` or its `data/`.

    Raises `DataError` if a kind of file is missing, sizes are mixed, or a file exists both plain and gzipped.
    """
    if not folder.is_dir():
        raise DataError(str(folder), "expected a folder in the KuaiRand layout, got none")
    matches = [(file, match) for file in sorted(folder.iterdir()) if (match := _FILE.fullmatch(file.name))]
    if not matches and (folder / "data").is_dir():
        return find_kuairand(folder / "data")
    found: dict[str, list[Path]] = {kind: [] for kind in _KINDS}
    for file, match in matches:
        found[match[1].lower()].append(file)
    for kind in _KINDS:
        if not found[kind]:
            raise DataError(str(folder), f"expected {kind}_<...>_<pure|1k|27k>.csv or .csv.gz, got no such file")
    sizes = sorted({match[2].lower() for _, match in matches})
    if len(sizes) > 1:
        raise DataError(str(folder), f"expected files of one size, got {', '.join(sizes)}")
    names = {file.name for file, _ in matches}
    for name in sorted(names):
        if f"{name}.gz" in names:
            raise DataError(str(folder / name), "expected the file either plain or gzipped, got both")
    sequences = folder / "user_sequences.parquet"
    return KuaiRandFiles(
        size=sizes[0],
        logs=tuple(found["log_standard"]),
        users=tuple(found["user_features"]),
        videos=tuple(found["video_features_basic"]),
        history=sequences if sequences.exists() else None,
    )


def load_kuairand(
    folder: Path,
    *,
    days: tuple[date, date] | None = None,
    progress: Progress | None = None,
) -> ImpressionLog:
    """Load a KuaiRand folder as a validated log named `kuairand-<size>`.

    Exact duplicates, which agree in all public columns (2.4 % of Pure), are dropped, and their number is logged. Another .2 %
    of Pure differ in `date` and `hourmin` alone and are kept. `days` keeps the impressions of those days only, in UTC+8, the
    first and the last included. Videos that are in the log alone become items without attributes; users without a row in the
    user file have none in the log either.

    Files are read in chunks, so that their whole text is never in memory. The parsed rows are: at the peak about 0.35 kB per
    kept impression, and as much per video. Pure and 1K fit in any machine; of 27K (about 320 million rows) a small machine can
    load some days at a time.

    Logs a warning for unknown columns, for days without a row between the first and the last, and for videos without a row in
    the video files. Raises `DataError`, which names file, row and column, for any other error in the files.
    """
    files = find_kuairand(folder)
    meter = _Meter(files.tables, progress)
    log = _load_log(files.logs, days, meter)
    users = _load_unique(files.users, USER_COLUMNS, "user_id", meter)
    videos = _load_unique(files.videos, VIDEO_COLUMNS, "video_id", meter, unused=VIDEO_UNUSED)
    without = log["video_id"].unique().is_in(videos["video_id"].implode()).not_().sum()
    if without:
        logger.warning("%s: %d videos of the log are not in the video files and have no author, tag or music", folder, without)
    loaded = ImpressionLog(
        name=f"kuairand-{files.size}",
        simulated=False,
        time_zone=TIME_ZONE,
        tasks=TASKS,
        impressions=impressions_table(log),
        items=items_table(videos, log),
        users=users_table(users),
        history=load_history(files.history) if files.history else HISTORY.empty_table(),
    )
    validate(loaded)
    if gaps := empty_days(loaded):
        logger.warning("%s: no impression on %s", folder, ", ".join(map(str, gaps)))
    return loaded


class _Meter:
    """Sum of the bytes read of several files."""

    def __init__(self, files: Iterable[Path], progress: Progress | None) -> None:
        self._sizes = {file: file.stat().st_size for file in files}
        self._total = max(1, sum(self._sizes.values()))
        self._read = dict.fromkeys(self._sizes, 0)
        self._progress = progress

    def of(self, file: Path) -> Callable[[int], None]:
        """Return the `on_bytes` of `read_chunks` for `file`."""

        def on_bytes(read: int) -> None:
            self._read[file] = read
            if self._progress is not None:
                self._progress(file.name, sum(self._read.values()) / self._total)

        return on_bytes


def _load_log(files: tuple[Path, ...], days: tuple[date, date] | None, meter: _Meter) -> pl.DataFrame:
    parts = []
    for file in files:
        for chunk in read_chunks(file, LOG_COLUMNS, on_bytes=meter.of(file)):
            parts.append(chunk if days is None else chunk.filter(_within(days)))
    rows = pl.concat(parts, how="diagonal")  # a file may lack an optional column
    del parts
    if days is not None and rows.is_empty():
        raise DataError(str(files[0].parent), f"expected impressions on {days[0]}..{days[1]}, got none")
    unique = _without_duplicates(rows)
    logger.info("%s: %d rows, %d exact duplicates dropped", files[0].parent, len(rows), len(rows) - len(unique))
    return unique


def _without_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one of each group of equal rows, sorted by the keys and then by the other columns.

    The order does not depend on that of the files. Only rows that agree with a neighbour in the keys are compared in all
    columns, which takes a third of the time and memory.
    """
    keys = ["time_ms", "user_id", "video_id"]
    rows = rows.sort(keys)
    again = rows.select(pl.all_horizontal(pl.col(keys) == pl.col(keys).shift(1)).fill_null(False)).to_series()
    tied = again | again.shift(-1, fill_value=False)
    ties = rows.filter(tied).unique()
    ties = ties.sort([name for name in LOG_COLUMNS if name in ties.columns])
    return pl.concat([rows.filter(~tied), ties]).sort(keys, maintain_order=True)


def _within(days: tuple[date, date]) -> pl.Expr:
    first, after = (
        int(datetime(day.year, day.month, day.day, tzinfo=zone_of(TIME_ZONE)).timestamp() * 1000)
        for day in (days[0], days[1] + timedelta(1))
    )
    return (pl.col("time_ms") >= first) & (pl.col("time_ms") < after)


def _load_unique(
    files: tuple[Path, ...],
    columns: Mapping[str, Column],
    key: str,
    meter: _Meter,
    *,
    unused: frozenset[str] = frozenset(),
) -> pl.DataFrame:
    """Read several files with one row per `key`; equal rows count as one. Raises `DataError` for rows that differ."""
    parts = []
    for file in files:
        row = 1
        for chunk in read_chunks(file, columns, unused=unused, on_bytes=meter.of(file)):
            parts.append(chunk.with_row_index("row", offset=row).with_columns(pl.lit(str(file)).alias("file")))
            row += len(chunk)
    rows = pl.concat(parts)
    unique = rows.unique(subset=list(columns), keep="first", maintain_order=True)
    again = unique[key].is_first_distinct().not_().arg_true()
    if len(again):
        at = int(again[0])
        message = f"expected one row for {key} {unique[key][at]}, got two that differ"
        raise DataError(unique["file"][at], message, row=unique["row"][at], column=key)
    return unique.drop("file", "row")
