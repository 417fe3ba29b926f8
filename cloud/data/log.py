"""A log on disk: written once, and read in parts of whole days, so that memory does not grow with the number of impressions.

::

    LOG/log.json                         `LogRecord`; written last: a folder without it is no log
    LOG/impressions/<first day>.parquet  impressions of this day and the next ones, up to the day of the next file, without
                                         the columns of `IMPRESSIONS` that are null everywhere
    LOG/{items,users,history,pages,ids}.parquet

Errors::

    DataError                  the folder holds no log, a damaged one, or one of another format
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pocketrank.cloud.data.days import day_of
from pocketrank.cloud.data.schema import (
    HISTORY,
    IDS,
    IMPRESSIONS,
    PAGES,
    DataError,
    ImpressionLog,
    LogDigest,
    as_table,
    ids_of,
    impressions_schema,
    labels_of,
    scores_of,
)
from pocketrank.cloud.data.validate import validate_impressions, validate_links, validate_others
from pocketrank.cloud.files import replace_folder, write_atomically
from pocketrank.cloud.time_zones import DAY_MS, local_ms, zone_of

__all__ = ["LOG_FORMAT", "Log", "LogRecord", "LogWriter", "StoredLog", "before_day", "open_log", "save_log"]

LOG_FORMAT = 4
"""Files of format 3 have all columns. Format 2 was one file of impressions, whose metadata had the record."""
_READABLE = (3, LOG_FORMAT)
_PART_ROWS = 1 << 17
"""Smallest number of rows in a file but the last, and the largest in one of its row groups."""
_EARLIEST, _LATEST = -(2**63), 2**63 - 1
_LINKS = ("item_id", "page_id")
"""Columns that refer to the other tables."""
_KEYS = ("impression_ms", "user_id", "item_id")
_MINUTE_MS = 60_000
_AHEAD = 4
"""Tables of impressions that may wait for the thread that writes them."""


class LogRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Record of a stored log."""

    format: int = LOG_FORMAT
    name: str
    simulated: bool
    time_zone: str
    tasks: dict[str, float]
    actions: tuple[str, ...]
    item_categories: tuple[str, ...]
    item_floats: tuple[str, ...]
    user_categories: tuple[str, ...] = ()
    numbering: str = ""
    rows: int
    digest: str
    """Of the whole log, as `ImpressionLog.digest` returns it."""
    files: tuple[str, ...]
    """Files of impressions, in the order of time."""
    source: str = ""
    """What the log was made from, by which an import finds that it need not be repeated."""


@dataclass(frozen=True)
class StoredLog:
    """A log in a folder. Its impressions are read part by part, the other tables when they are asked for."""

    folder: Path
    record: LogRecord
    until_ms: int | None = None
    """Time from which on impressions are left out."""

    @property
    def name(self) -> str:
        """See `ImpressionLog`."""
        return self.record.name

    @property
    def simulated(self) -> bool:
        """See `ImpressionLog`."""
        return self.record.simulated

    @property
    def time_zone(self) -> str:
        """See `ImpressionLog`."""
        return self.record.time_zone

    @property
    def tasks(self) -> dict[str, float]:
        """See `ImpressionLog`."""
        return self.record.tasks

    @property
    def actions(self) -> tuple[str, ...]:
        """See `ImpressionLog`."""
        return self.record.actions

    @property
    def item_categories(self) -> tuple[str, ...]:
        """See `ImpressionLog`."""
        return self.record.item_categories

    @property
    def item_floats(self) -> tuple[str, ...]:
        """See `ImpressionLog`."""
        return self.record.item_floats

    @property
    def user_categories(self) -> tuple[str, ...]:
        """See `ImpressionLog`."""
        return self.record.user_categories

    @property
    def numbering(self) -> str:
        """See `ImpressionLog`."""
        return self.record.numbering

    @property
    def rows(self) -> int:
        """See `ImpressionLog`."""
        return self.record.rows if self.until_ms is None else sum(map(len, self.parts(columns=("impression_ms",))))

    @cached_property
    def schema(self) -> pa.Schema:
        """See `ImpressionLog`."""
        written = _opened(self.folder / "impressions" / self.record.files[0]).schema_arrow
        return impressions_schema(labels_of(written), scores_of(written))

    @property
    def labels(self) -> tuple[str, ...]:
        """See `ImpressionLog`."""
        return labels_of(self.schema)

    @property
    def scores(self) -> tuple[str, ...]:
        """See `ImpressionLog`."""
        return scores_of(self.schema)

    @cached_property
    def items(self) -> pa.Table:
        """See `ImpressionLog`."""
        return self._table("items")

    @cached_property
    def users(self) -> pa.Table:
        """See `ImpressionLog`."""
        return self._table("users")

    @cached_property
    def history(self) -> pa.Table:
        """See `ImpressionLog`."""
        return self._table("history")

    @cached_property
    def pages(self) -> pa.Table:
        """See `ImpressionLog`."""
        return self._table("pages")

    @cached_property
    def ids(self) -> pa.Table:
        """See `ImpressionLog`."""
        return self._table("ids")

    def parts(
        self, since_ms: int = _EARLIEST, until_ms: int = _LATEST, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Return the impressions in their order, in tables of up to 131,072 rows, without most of those outside of
        `since_ms` to `until_ms`. `columns` are those that are read, by default all. Raises `DataError`."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        if self.until_ms is not None:
            until_ms = min(until_ms, self.until_ms - 1)
        for name in self.record.files:
            path = self.folder / "impressions" / name
            file = _opened(path)
            written = file.schema_arrow
            at = written.get_field_index("impression_ms")
            present = [name for name in schema.names if name in written.names]
            for group in range(file.num_row_groups):
                range_ms = file.metadata.row_group(group).column(at).statistics
                if range_ms.max < since_ms:
                    continue
                if range_ms.min > until_ms:
                    return
                part = _group(file, group, path, present)
                if self.until_ms is not None and range_ms.max >= self.until_ms:
                    part = part.filter(pc.less(part["impression_ms"], self.until_ms))
                yield as_table(part, schema)

    def ids_of(self, kinds: Sequence[str]) -> pa.Table:
        """Return the `ids` of these kinds, without those of others, such as sessions, in memory. Raises `DataError`."""
        path, parts = self.folder / "ids.parquet", [IDS.empty_table()]
        file = _opened(path)
        for group in range(file.num_row_groups):
            part = _group(file, group, path)
            parts.append(ids_of(part, kinds))
        return pa.concat_tables(parts)

    def digest(self) -> str:
        """Return the digest that was taken when the log was written, or that of what is left of it."""
        if self.until_ms is None:
            return self.record.digest
        return hashlib.sha256(f"{self.record.digest} {self.until_ms}".encode()).hexdigest()

    def load(self) -> ImpressionLog:
        """Return the log in memory. Raises `DataError`."""
        tables = {name: getattr(self, name) for name in ImpressionLog.TABLES[1:]}
        return ImpressionLog(
            name=self.name,
            simulated=self.simulated,
            time_zone=self.time_zone,
            tasks=self.tasks,
            actions=self.actions,
            item_categories=self.item_categories,
            item_floats=self.item_floats,
            user_categories=self.user_categories,
            numbering=self.numbering,
            impressions=pa.concat_tables(self.parts()).combine_chunks(),
            **tables,
        )

    def _table(self, name: str) -> pa.Table:
        path = self.folder / f"{name}.parquet"
        try:
            return _opened(path).read()
        except (OSError, pa.ArrowException) as error:
            raise DataError(str(path), f"expected a Parquet file, got one that cannot be read: {error}") from error


def open_log(folder: Path) -> StoredLog:
    """Open the log in `folder`, whose tables were validated when they were written.

    Raises `DataError` for a folder without a log, a record that cannot be read, a log of another format, and a file that is
    missing or truncated. Damage within a file is found when it is read, because pages have checksums.
    """
    path = folder / "log.json"
    try:
        record = msgspec.json.decode(path.read_bytes(), type=LogRecord)
    except FileNotFoundError as error:
        raise DataError(
            str(path), "expected the record of a log, got no such file; `pocketrank data import` makes a log"
        ) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"expected the record of a log, got: {error}") from error
    if record.format not in _READABLE:
        raise DataError(str(path), f"expected a log of format {LOG_FORMAT}, got {record.format}; import it again")
    log = StoredLog(folder, record)
    rows = sum(_opened(folder / "impressions" / name).metadata.num_rows for name in record.files)
    if rows != record.rows:
        raise DataError(str(path), f"expected {record.rows} impressions in the files of {folder / 'impressions'}, got {rows}")
    for name in ImpressionLog.TABLES[1:]:
        _opened(folder / f"{name}.parquet")
    return log


def save_log(log: ImpressionLog, folder: Path) -> StoredLog:
    """Write a log in memory into `folder`, in place of one that is there. Raises OSError, `DataError`."""
    with LogWriter(
        folder,
        name=log.name,
        simulated=log.simulated,
        time_zone=log.time_zone,
        tasks=log.tasks,
        labels=log.labels,
        actions=log.actions,
        scores=log.scores,
        absent=[field.name for field in IMPRESSIONS if log.impressions[field.name].null_count == log.rows],
    ) as writer:
        writer.write(log.impressions)
        return writer.finish(
            log.items,
            log.users,
            history=log.history,
            pages=log.pages,
            ids=log.ids,
            item_categories=log.item_categories,
            item_floats=log.item_floats,
            user_categories=log.user_categories,
            numbering=log.numbering,
        )


Log = ImpressionLog | StoredLog
"""A log, of which a training reads the impressions part by part."""


def before_day(log: Log, day: date) -> Log:
    """Return the log without the impressions of `day` and of later days. Raises `DataError` when none is left."""
    at = datetime.combine(day, time(), zone_of(log.time_zone))
    until_ms = int(at.timestamp() * 1000)
    cut = replace(log, until_ms=until_ms) if isinstance(log, StoredLog) else _cut(log, until_ms)
    if not cut.rows:
        raise DataError(log.name, f"expected impressions before {day}, got none")
    return cut


def _cut(log: ImpressionLog, until_ms: int) -> ImpressionLog:
    return replace(log, impressions=log.impressions.filter(pc.less(log.impressions["impression_ms"], until_ms)))


class LogWriter:
    """Writes a log whose impressions come in tables. Until `finish` has returned, what was at `folder` is unchanged.

    A thread of its own takes the digest and writes the files, while the caller makes the next table.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        simulated: bool,
        time_zone: str,
        tasks: dict[str, float],
        labels: Sequence[str] = (),
        actions: Sequence[str] = (),
        scores: Sequence[str] = (),
        absent: Sequence[str] = (),
        source: str = "",
    ) -> None:
        """`labels` are all labels or those of the log's own, `scores` the columns of its own scores, and `absent` those columns
        of `IMPRESSIONS` that are null in all rows, which files do not have."""
        self._folder, self._part = folder, folder.with_name(f"{folder.name}.{os.urandom(8).hex()}.part")
        self._schema = impressions_schema(labels, scores)
        self._about: dict[str, Any] = {
            "name": name,
            "simulated": simulated,
            "time_zone": time_zone,
            "tasks": dict(tasks),
            "actions": tuple(actions),
            "source": source,
        }
        kept = [field for field in self._schema if field.name not in absent]
        self._written = pa.schema(kept)
        self._digest, self._rows, self._files = LogDigest(self._schema), 0, list[str]()
        self._thread = ThreadPoolExecutor(1, "log-writer")
        self._ahead = deque[Future[None]]()
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._in_file = 0  # rows
        self._last_day: int | None = None
        self._last: dict[str, int] | None = None

    def __enter__(self) -> LogWriter:
        (self._part / "impressions").mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def write(self, impressions: pa.Table, *, valid: bool = False) -> None:
        """Add impressions, which follow those that were written before. `valid` tells that they need no checks, and then the
        columns that are absent may be missing.

        Raises `DataError` with the row, and OSError, also of impressions that were added before.
        """
        if not len(impressions):
            return
        if not valid:
            impressions = impressions.cast(self._schema)
        first = {key: impressions[key][0].as_py() for key in _KEYS}
        try:
            if not valid:
                validate_impressions(impressions)
                for name in set(self._schema.names) - set(self._written.names):
                    if impressions[name].null_count < len(impressions):
                        raise DataError("impressions", "expected nulls in a column that is absent, got a value", column=name)
            if self._last is not None and tuple(first.values()) < tuple(self._last.values()):
                message = f"expected rows sorted by {', '.join(_KEYS)}, got one that belongs before the row above it"
                raise DataError("impressions", message, row=1, column=_KEYS[0])
        except DataError as error:
            row = None if error.row is None else error.row + self._rows
            raise DataError(error.file, error.message, row=row, column=error.column) from None
        self._last = {key: impressions[key][-1].as_py() for key in _KEYS}
        self._rows += len(impressions)
        self._ahead.append(self._thread.submit(self._write, impressions.select(self._written.names).cast(self._written)))
        if len(self._ahead) > _AHEAD:
            self._ahead.popleft().result()

    def finish(
        self,
        items: pa.Table,
        users: pa.Table,
        *,
        history: pa.Table | None = None,
        pages: pa.Table | None = None,
        ids: pa.Table | None = None,
        item_categories: Sequence[str] = (),
        item_floats: Sequence[str] = (),
        user_categories: Sequence[str] = (),
        numbering: str = "",
        all_items: bool = False,
    ) -> StoredLog:
        """Write the other tables, and put the log in its place. `item_categories`, `item_floats` and `user_categories` name the
        values in the lists of items and users, `numbering` the codes of categories. `all_items` tells that the items of all
        impressions are known to be in `items`. Raises `DataError`, OSError."""
        if not self._rows:
            raise DataError(self._about["name"], "expected impressions, got none")
        while self._ahead:
            self._ahead.popleft().result()
        self._close()
        tables = {
            "items": items,
            "users": users,
            "history": HISTORY.empty_table() if history is None else history,
            "pages": PAGES.empty_table() if pages is None else pages,
            "ids": IDS.empty_table() if ids is None else ids,
        }
        named = {
            "item_categories": tuple(item_categories),
            "item_floats": tuple(item_floats),
            "user_categories": tuple(user_categories),
            "numbering": numbering,
        }
        about = {**self._about, **named, "rows": self._rows, "files": tuple(self._files)}
        if unknown := set(self._about["actions"]) - set(labels_of(self._schema)):
            raise DataError("impressions", f"expected labels of the actions {', '.join(sorted(unknown))}, got none")
        written = StoredLog(self._part, LogRecord(**about, digest=""))
        for name, table in tables.items():
            # The other naming of list elements would change the schema.
            pq.write_table(table, self._part / f"{name}.parquet", write_page_checksum=True, use_compliant_nested_type=False)
        validate_others(tables)
        row = 0
        for part in () if all_items and not len(tables["pages"]) else written.parts(columns=_LINKS):
            try:
                validate_links(part, tables)
            except DataError as error:
                at = error.row + row if error.row and error.file == "impressions" else error.row
                raise DataError(error.file, error.message, row=at, column=error.column) from None
            row += len(part)
        record = LogRecord(**about, digest=self._digest.finish(tables))
        write_atomically(self._part / "log.json", msgspec.json.format(msgspec.json.encode(record)))
        if self._folder.exists() and any(self._folder.iterdir()) and not (self._folder / "log.json").is_file():
            raise DataError(str(self._folder), "expected an empty folder or a log, got other files")
        replace_folder(self._part, self._folder)
        return StoredLog(self._folder, record)

    def _write(self, rows: pa.Table) -> None:
        """Add sorted impressions to the digest and to files of whole days."""
        self._digest.update(rows)
        starts, days = _day_starts(rows["impression_ms"].to_numpy(), self._about["time_zone"])
        for start, end, day in zip(starts, [*starts[1:], len(rows)], days, strict=True):
            self._add(rows.slice(start, end - start), day)

    def _add(self, rows: pa.Table, day: int) -> None:
        if self._writer is not None and day != self._last_day and self._in_file >= _PART_ROWS:
            self._close()
        if self._writer is None:
            self._files.append(f"{day_of(day)}.parquet")
            path = self._part / "impressions" / self._files[-1]
            self._writer = pq.ParquetWriter(path, self._written, **_encoding(self._written))
            self._in_file = 0
        self._last_day = day
        self._waiting.append(rows)
        self._in_file += len(rows)
        if sum(map(len, self._waiting)) >= _PART_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting and self._writer is not None:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=_PART_ROWS)
        self._waiting = []

    def _close(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of Parquet: files are written in half the time of the default, and have two thirds of its size.

    Hashes and times rarely repeat, so that dictionaries do not help; whole numbers are packed into as few bits as they need.
    """
    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    return {
        "use_dictionary": False,
        "column_encoding": dict.fromkeys(whole, "DELTA_BINARY_PACKED"),
        "compression": {name: "none" if name in whole else "snappy" for name in schema.names},
        "write_statistics": ["impression_ms"],
        "write_page_checksum": True,
    }


def _day_starts(times: NDArray[np.int64], time_zone: str) -> tuple[list[int], list[int]]:
    """Return the rows of sorted `times` at which a day begins, and these days, as `day_of` takes them."""
    minutes = times // _MINUTE_MS
    first = np.flatnonzero(np.diff(minutes, prepend=minutes[0] - 1))
    day = local_ms(times[first], time_zone) // DAY_MS
    new = np.flatnonzero(np.diff(day, prepend=day[0] - 1))
    return first[new].tolist(), day[new].tolist()


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise DataError(str(path), "expected a table of a saved log, got no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(str(path), f"expected a Parquet file, got one that cannot be read: {error}") from error


def _group(file: pq.ParquetFile, group: int, path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        return file.read_row_group(group, columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(str(path), f"expected a Parquet file, got one that cannot be read: {error}") from error
